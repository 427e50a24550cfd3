"""fairseq-preprocess; where it is killed, the processes that it started end with it instead of writing on."""

import os
import runpy

from luna_tools.processes import die_with_parent

if __name__ == "__main__":
    os.environ["LOGLEVEL"] = "INFO"  # the counts in its log are read
    os.register_at_fork(after_in_child=die_with_parent)
    runpy.run_module("fairseq_cli.preprocess", run_name="__main__", alter_sys=True)
