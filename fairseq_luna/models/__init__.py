"""The models that fairseq knows by name. fairseq imports every entry of this folder under --user-dir."""
