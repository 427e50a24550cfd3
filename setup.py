from runpy import run_path

from setuptools import find_packages, setup

setup(
    name="fairseq-luna",
    version=run_path("fairseq_luna/versions.py")["__version__"],
    description="Luna (linear unified nested attention) for machine translation with fairseq",
    license="MIT",
    packages=find_packages(include=["fairseq_luna", "fairseq_luna.*"]),
    python_requires=">=3.8,<3.13",
    install_requires=[
        # Stock fairseq cannot be imported on Python 3.11 and later. What can goes under another name and is left to the
        # extra, so that installing the plugin never writes over a fairseq that is already there.
        'fairseq>=0.12.2,<0.13; python_version < "3.11"',
        "hydra-core",
        "sacrebleu",
        "sacremoses",
        "sentencepiece",
        "subword-nmt",
        "tensorboardX",  # without it fairseq logs a complaint, which also spoils the format of its later lines
        "torch>=1.12",
    ],
    extras_require={
        "fairseq": ['ve-fairseq==0.12.3; python_version >= "3.11"'],
        "dev": [
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools>=70.1",
            # whose interpreter runs the kernels on a CPU; a torch for CUDA brings its own
            'triton; python_version >= "3.11" and sys_platform == "linux"',
        ],
        "plot": ["matplotlib"],
        # where torch can export; what translates with the result asks for onnxruntime alone
        "export": [f'{name}; python_version >= "3.11"' for name in ("onnx", "onnxruntime", "onnxscript")],
    },
)
