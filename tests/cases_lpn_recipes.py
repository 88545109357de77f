"""The recipes of LPN, on tiny settings."""

from cases_recipes import load_recipe


TINY = {
    "num_threads": 1,
    "task_num_rows": 4,
    "task_num_cols": 4,
    "task_pattern_size": 2,
    "max_rows": 4,
    "max_cols": 4,
    "latent_dim": 2,
    "encoder_num_heads": 2,
    "encoder_head_dim": 4,
    "decoder_num_heads": 2,
    "decoder_head_dim": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 30,
    "save_steps": 10,
    "save_total_limit": 5,
    "logging_steps": 10,
    "num_eval_tasks": 4,
    "eval_budgets": [0, 1],
    "disable_tqdm": "true",
}
TINY_EVALUATION = {
    **{name: TINY[name] for name in ("num_threads", "task_num_rows", "task_num_cols", "task_pattern_size")},
    "num_tasks": 9,
    "budgets": [0, 2],
    "batch_size": 2,
    "search_lr": 0.5,
    "num_pictures": 1,
    "num_maps": 1,
}


train, evaluate = load_recipe("train_lpn"), load_recipe("evaluate_lpn")
