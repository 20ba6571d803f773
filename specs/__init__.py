"""Decoder specs that ship with the package, found by name through `eagle.spec.load_spec`."""
