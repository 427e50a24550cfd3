"""Tasks that fairseq has not got."""
