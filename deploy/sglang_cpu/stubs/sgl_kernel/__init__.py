"""Import stand-in for `sgl_kernel`, whose wheels on PyPI are all built for CUDA.

SGLang imports these names when it starts on any device. It calls them only for speculative decoding and for its native
CPU kernels. The op `torch.ops.sgl_kernel.convert_weight_packed` is omitted on purpose, because SGLang takes its
pure-torch path without this op."""

from _stub import absent, refuse_beside

refuse_beside("sgl-kernel", "sglang-kernel", "sgl-kernel-cpu")
__version__ = "0.0.0+treeadv.import.stub"

assign_draft_cache_locs_contiguous_cpu = absent(__name__, "assign_draft_cache_locs_contiguous_cpu")
assign_req_to_token_pool_cpu = absent(__name__, "assign_req_to_token_pool_cpu")
copy_all_layer_kv_cache_cpu = absent(__name__, "copy_all_layer_kv_cache_cpu")
assign_extend_cache_locs_cpu = absent(__name__, "assign_extend_cache_locs_cpu")
fill_accept_out_cache_loc_cpu = absent(__name__, "fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = absent(__name__, "fill_bonus_tokens_cpu")
build_tree_kernel_efficient_cpu = absent(__name__, "build_tree_kernel_efficient_cpu")
verify_tree_greedy_cpu = absent(__name__, "verify_tree_greedy_cpu")
