"""What a server costs over its engine, and what any server would; knows both sides of a socket."""
