"""Operators of aten that a graph may hold: what models compute with. None of them touches files or other processes."""

from __future__ import annotations

__all__ = ["ALLOWED"]

_LAYERS = """
linear addmm addbmm baddbmm bmm mm matmul mv dot einsum bilinear outer ger tensordot kron chain_matmul
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution conv_tbc
batch_norm instance_norm layer_norm group_norm rms_norm local_response_norm native_batch_norm native_layer_norm
native_group_norm embedding embedding_bag lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
quantized_lstm quantized_gru quantized_lstm_cell quantized_gru_cell quantized_rnn_tanh_cell quantized_rnn_relu_cell
scaled_dot_product_attention dropout feature_dropout alpha_dropout feature_alpha_dropout
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_unpool2d max_unpool3d lp_pool2d
pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bilinear2d_aa grid_sampler
grid_sampler_2d grid_sampler_3d affine_grid_generator im2col col2im unfold fold
pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d
quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize int_repr
fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
_pad_packed_sequence _pack_padded_sequence
"""
_ACTIVATIONS = """
relu relu6 hardtanh hardsigmoid hardswish silu mish sigmoid logsigmoid log_sigmoid tanh softmax log_softmax _softmax
_log_softmax gelu elu celu selu leaky_relu prelu rrelu softplus softshrink hardshrink tanhshrink softsign threshold glu
softmin gumbel_softmax
"""
_ARITHMETIC = """
add sub rsub mul div true_divide floor_divide remainder fmod pow float_power neg abs sign exp exp2 expm1 log log1p log2
log10 sqrt rsqrt square reciprocal sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv
floor ceil round trunc frac clamp clamp_min clamp_max clip minimum maximum fmax fmin lerp addcmul addcdiv nan_to_num
logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__
__lshift__ __rshift__ eq ne lt le gt ge isnan isinf isfinite isclose where masked_fill masked_select masked_scatter
sum mean prod std var std_mean var_mean max min amax amin aminmax argmax argmin median mode all any cumsum cumprod
logsumexp norm linalg_norm linalg_vector_norm frobenius_norm normalize cosine_similarity pairwise_distance cdist dist
sigmoid logit polar complex real imag view_as_real view_as_complex conj
"""
_SHAPES = """
size dim numel len stride is_floating_point sym_size view view_as reshape reshape_as flatten unflatten squeeze unsqueeze
transpose t permute swapaxes swapdims movedim moveaxis adjoint mT mH numpy_T contiguous expand expand_as repeat
repeat_interleave tile broadcast_to broadcast_tensors cat concat concatenate stack hstack vstack dstack chunk split
split_with_sizes tensor_split unbind narrow select slice index index_select index_put index_add index_fill index_copy
gather scatter scatter_add take take_along_dim diagonal diag diag_embed tril triu flip roll rot90 sort argsort topk
unique nonzero bincount searchsorted bucketize meshgrid cartesian_prod
to type_as float half double int long bool cpu detach clone alias copy lift_fresh pin_memory requires_grad
zeros zeros_like ones ones_like full full_like empty empty_like new_zeros new_ones new_full new_empty arange linspace
eye tensor scalar_tensor as_tensor one_hot rand randn rand_like randn_like normal bernoulli uniform fill zero
"""

ALLOWED = frozenset(f"{_LAYERS} {_ACTIVATIONS} {_ARITHMETIC} {_SHAPES}".split())
"""Without the underscore that marks the form which writes into its argument: that is allowed where this is."""
