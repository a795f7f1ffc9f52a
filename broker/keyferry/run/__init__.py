"""The standalone broker: resources from a directory, token files to a directory, state in a directory."""
