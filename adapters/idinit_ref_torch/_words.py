"""The plain names of PyTorch's operations of which only the kind counts."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["WORDS", "names_in"]


def names_in(names: Iterable[str]) -> frozenset[str]:
    """Return the full names of operations, given in lines of short ones."""
    return frozenset(f"aten::{name}" for line in names for name in line.split())


WORDS = {
    name: word
    for word, names in {
        "norm": "native_layer_norm native_batch_norm native_group_norm _native_batch_norm_legit "
        "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm _fused_rms_norm "
        "batch_norm layer_norm group_norm",
        "softmax": "_softmax _log_softmax _safe_softmax logsumexp",
        "pool": "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
        "max min amax amin aminmax argmax argmin mean sum trace median nanmedian mode "
        "kthvalue",
        "std": "norm linalg_vector_norm std std_mean",
        "var": "prod var linalg_det _linalg_det",
        "linear": "_fft_r2c _fft_c2r _fft_c2c",
        "cumprod": "cumprod cummax cummin renorm frexp geqrf linalg_lu_factor_ex linalg_pinv "
        "_pdist_forward all any argsort nonzero _unique2 searchsorted bucketize",
        "distance": "_cdist_forward",
        "mul": "linalg_cross vdot",
        "logsigmoid": "log_sigmoid_forward",
        "logcumsumexp": "logcumsumexp",
        "select": "topk masked_select unique_consecutive",
        "unpool": "max_unpool2d max_unpool3d",
        "resize": "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_linear1d "
        "_upsample_nearest_exact2d upsample_trilinear3d grid_sampler_2d grid_sampler_3d",
        "move": "pixel_shuffle pixel_unshuffle sort repeat roll repeat_interleave "
        "channel_shuffle native_channel_shuffle "
        "view_as_real view_as_complex diag diag_embed to_sparse to_sparse_csr to_dense",
        "dropout": "native_dropout",
    }.items()
    for name in names_in([names])
}
