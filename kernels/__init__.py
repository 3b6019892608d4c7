"""The ops as Triton kernels, with the arithmetic and the names of csrc/gms.

They import torch and triton only.
"""

if __name__ == "gms_fast.kernels":
    from gms_fast.kernels.launch import fit_mixture as fit_mixture
    from gms_fast.kernels.launch import gms_step as gms_step
    from gms_fast.kernels.launch import linear_step as linear_step
    from gms_fast.kernels.launch import philox as philox
    from gms_fast.kernels.launch import sample_mixture as sample_mixture
else:  # in a checkout's folder, where libraries look for another package of the bare name: it holds nothing

    def __getattr__(name: str) -> object:
        raise AttributeError(f"import gms_fast.kernels, not the bare folder, for {name}")
