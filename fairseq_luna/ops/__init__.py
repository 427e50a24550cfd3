"""Luna's operators in forms for a GPU. `dispatch.py` decides where they run; nothing here knows fairseq."""
