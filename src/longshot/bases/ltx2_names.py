"""What LTX-2's own code calls the parts of its transformer, and diffusers' names of the same."""

# In this order: a name on the left may hold one of those after it.
_PARTS = (
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
    ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
    ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("adaln_single", "time_embed"),
    ("patchify_proj", "proj_in"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
)


def ltx2_name(name: str) -> str:
    """diffusers' name of a module or tensor; one that is diffusers' own already stays as it is."""
    for theirs, ours in _PARTS:
        name = name.replace(theirs, ours)
    return name
