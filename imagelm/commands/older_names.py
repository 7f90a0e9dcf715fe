"""Options as older versions of transformers and tutorials call them → what does the same today."""

from __future__ import annotations

from collections.abc import Collection

# The option's name, and where it needs one a value; "" if nothing is needed any more.
TODAY = {
    "adafactor": "optim adafactor",
    "batch_size": "per_device_train_batch_size",
    "dispatch_batches": "accelerator_config",
    "epochs": "num_train_epochs",
    "evaluate_during_training": "eval_strategy steps",
    "evaluation_strategy": "eval_strategy",
    "fp16_backend": "fp16",
    "fp16_opt_level": "fp16",
    "fsdp_min_num_params": "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config",
    "group_by_length": "train_sampling_strategy group_by_length",
    "half_precision_backend": "fp16",
    "include_inputs_for_metrics": "include_for_metrics inputs",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "jit_mode_eval": "torch_compile",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_epochs": "num_train_epochs",
    "model_name": "model_name_or_path",
    "model_name_or_path": "model",
    "no_cuda": "use_cpu",
    "num_epochs": "num_train_epochs",
    "onnx": "backend onnx",
    "overwrite_output_dir": "overwrite",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "sharded_ddp": "fsdp",
    "split_batches": "accelerator_config",
    "torchdynamo": "torch_compile",
    "warmup_ratio": "warmup_steps",  # which takes a part of all steps, such as 0.1, too
    **dict.fromkeys(("logging_dir", "mp_parameters", "no_mps", "past_index", "ray_scope", "save_safetensors"), ""),
    **dict.fromkeys(("tpu_metrics_debug", "tpu_num_cores", "use_ipex", "use_legacy_prediction_loop"), ""),
    **dict.fromkeys(("use_mps_device", "xpu_backend"), ""),
}


def remedy(name: str, known: Collection[str], dashes: str = "") -> str:
    """What to do about an option that doesn't exist, as a part of a sentence and its end: today's name or the nearest.

    `dashes` stand before an option's name where the user wrote them.
    """
    import difflib

    today = TODAY.get(name)
    if today == "" and "learning_rate" in known:
        return "; today's transformers does without it: remove it."
    if today and today.split()[0] in known:
        return f"; today it is '--{today}'."
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{dashes}{near[0]}'?" if near else "."
