"""`eagle tree`: one cycle as text or picture; knows what is drawn, not how it was decoded."""
