"""t5x's names, and what there is for them here: for errors, and for docs/coming_from_t5x.md.

A value is the name of ours, words that say why there is none ("none: ..."), or "the same" where the
name is kept; after a semicolon, what differs.
"""

from __future__ import annotations

import re

from gr_jax import RESOURCES

FLAGS = {
    "gin_file": "the same",
    "gin_bindings": "the same; --gin.NAME=VALUE is short for it",
    "gin_search_paths": "the same",
    "dry_run": "the same; of train, eval and infer",
    "alsologtostderr": "the same; absl's",
    "run_mode": "python -m gr_jax.train, gr_jax.eval or gr_jax.infer",
    "tfds_data_dir": "none: no TFDS data is read; leave it out, --gin.CORPUS is a BEIR folder",
    "seqio_additional_cache_dirs": "the same; looked through before MODEL_DIR/seqio_cache",
    "multiprocess_gpu": "the same; found by itself on Cloud TPUs and under srun",
    "coordinator_address": "the same",
    "process_count": "the same",
    "process_index": "the same",
    "initialization_timeout": "the same",
    "shard_id": "none: split the queries file, and give each part to its own gr_jax.infer",
}

MACROS = {
    "MODEL_DIR": "the same; eval and infer need it too",
    "TRAIN_STEPS": "the same; counted from 0, so without the steps of the pretraining",
    "TRAIN_STEPS_RELATIVE": "TRAIN_STEPS; which is relative already",
    "BATCH_SIZE": "the same; examples, packed into fewer rows",
    "DROPOUT_RATE": "the same",
    "INITIAL_CHECKPOINT_PATH": "the same; also of Hugging Face's or gr_jax's format",
    "CHECKPOINT_PATH": "the same; MODEL_DIR/checkpoint_N, by default the newest",
    "EVAL_OUTPUT_DIR": "the same; MODEL_DIR by default",
    "INFER_OUTPUT_DIR": "the same; MODEL_DIR/runs by default",
    "RANDOM_SEED": "the same; 0 by default, never random",
    "OPTIMIZER": "the same; @training.Optimizer(), whose name may be 'adafactor'",
    "LABEL_SMOOTHING": "the same",
    "Z_LOSS": "the same; 0 by default",
    "LOSS_NORMALIZING_FACTOR": "the same; None is the number of target tokens, t5x's None is 1.0",
    "MODEL": "a second --gin_file of gin/models, or pipeline.run.model",
    "VOCABULARY": "SENTENCEPIECE; a file, and None trains one on the corpus",
    "MIXTURE_OR_TASK_NAME": "the same; text -> docid tokens, and None makes one from CORPUS",
    "MIXTURE_OR_TASK_MODULE": "the same",
    "TASK_FEATURE_LENGTHS": "pipeline.DataConfig.input_length; targets are as long as docids are",
    "FEATURE_LENGTHS": "pipeline.DataConfig.input_length; targets are as long as docids are",
    "USE_CACHED_TASKS": "the same; False by default, and read once into the token cache",
    "SHUFFLE_TRAIN_EXAMPLES": "none: the order is always a true shuffle of RANDOM_SEED",
    "EVAL_PERIOD": "none: evaluated after training; gr_jax.eval with CHECKPOINT_PATH for more",
    "EVAL_STEPS": "none: evaluated on all queries, after training",
    "EVALUATOR_NUM_EXAMPLES": "none: evaluated on all queries",
    "EVALUATOR_USE_MEMORY_CACHE": "none: queries are always in memory",
    "JSON_WRITE_N_RESULTS": "none: run files hold all queries",
    "USE_HARDWARE_RNG": "none: jax.random decides; set JAX_DEFAULT_PRNG_IMPL=rbg",
    "TF_EXAMPLE_FILE_PATHS": "QUERIES; a queries.jsonl",
    "TF_EXAMPLE_FILE_TYPE": "QUERIES; a queries.jsonl",
}

# By configurable and parameter; configurables without one stand for all others of theirs, and so do
# modules.
SETTINGS = {
    "utils.DatasetConfig": "pipeline.DataConfig",
    "utils.DatasetConfig.batch_size": "pipeline.DataConfig.batch_size",
    "utils.DatasetConfig.pack": "pipeline.DataConfig.pack",
    "utils.DatasetConfig.task_feature_lengths": "pipeline.DataConfig.input_length",
    "utils.DatasetConfig.use_cached": "pipeline.DataConfig.use_cached",
    "utils.DatasetConfig.seed": "training.TrainConfig.seed",
    "utils.DatasetConfig.split": "none: qrels/train.tsv is trained on, other qrels evaluated on",
    "utils.DatasetConfig.mixture_or_task_name": "pipeline.DataConfig.mixture",
    "utils.DatasetConfig.module": "pipeline.DataConfig.mixture_module",
    "utils.CheckpointConfig": "training.TrainConfig and pipeline.InitialCheckpoint",
    "utils.SaveCheckpointConfig": "training.TrainConfig; save_period and keep",
    "utils.SaveCheckpointConfig.period": "training.TrainConfig.save_period",
    "utils.SaveCheckpointConfig.keep": "training.TrainConfig.keep; 2 by default, None keeps all",
    "utils.SaveCheckpointConfig.dtype": "none: parameters are saved as trained, in float32",
    "utils.SaveCheckpointConfig.save_dataset": "none: the step is the position in the data",
    "utils.RestoreCheckpointConfig": "pipeline.InitialCheckpoint",
    "utils.RestoreCheckpointConfig.path": "pipeline.InitialCheckpoint.path",
    "utils.RestoreCheckpointConfig.mode": "none: CHECKPOINT_PATH, or else the newest",
    "utils.RestoreCheckpointConfig.dtype": "pipeline.EvalConfig.precision",
    "utils.RestoreCheckpointConfig.strict": "none: always strict but for docid tables",
    "trainer.Trainer": "training.TrainConfig",
    "trainer.Trainer.learning_rate_fn": "training.TrainConfig.schedule",
    "trainer.Trainer.num_microbatches": "training.TrainConfig.microbatches",
    "trainer.TerminateOnNanAction": "none: a loss that is not a number always ends training",
    "partitioning.PjitPartitioner": "training.Partitioning",
    "partitioning.PjitPartitioner.num_partitions": "training.Partitioning.model_parallel",
    "partitioning.PjitPartitioner.logical_axis_rules": (
        "training.Partitioning.additional_rules; the standard ones are always there"
    ),
    "partitioning.ModelBasedPjitPartitioner": "training.Partitioning",
    "partitioning.ModelBasedPjitPartitioner.num_partitions": (
        "training.Partitioning.model_parallel"
    ),
    "partitioning.standard_logical_axis_rules": "training.Partitioning",
    "partitioning.standard_logical_axis_rules.activation_partitioning_dims": (
        "training.Partitioning.activation_partitions"
    ),
    "partitioning.standard_logical_axis_rules.parameter_partitioning_dims": (
        "training.Partitioning.parameter_partitions"
    ),
    "partitioning.standard_logical_axis_rules.additional_rules": (
        "training.Partitioning.additional_rules"
    ),
    "utils.create_learning_rate_scheduler": "training.Schedule",
    "utils.create_learning_rate_scheduler.factors": "training.Schedule.factors",
    "utils.create_learning_rate_scheduler.base_learning_rate": "training.Schedule.base",
    "utils.create_learning_rate_scheduler.warmup_steps": "training.Schedule.warmup_steps",
    "utils.create_learning_rate_scheduler.decay_factor": "training.Schedule.decay_factor",
    "utils.create_learning_rate_scheduler.steps_per_decay": "training.Schedule.steps_per_decay",
    "utils.create_learning_rate_scheduler.steps_per_cycle": "training.Schedule.steps_per_cycle",
    "utils.create_learning_rate_scheduler.step_offset": "training.Schedule.step_offset",
    "utils.create_learning_rate_scheduler.min_learning_rate": "training.Schedule.min_learning_rate",
    "adafactor.Adafactor": "training.Adafactor; and training.Optimizer.name = 'adafactor'",
    "adafactor.Adafactor.decay_rate": "training.Adafactor.decay_rate",
    "adafactor.Adafactor.step_offset": "training.Adafactor.step_offset",
    "adafactor.Adafactor.beta1": "training.Adafactor.beta1",
    "adafactor.Adafactor.factored": "training.Adafactor.factored",
    "adafactor.Adafactor.clipping_threshold": "training.Adafactor.clipping_threshold",
    "adafactor.Adafactor.weight_decay_rate": "training.Adafactor.weight_decay_rate",
    "adafactor.Adafactor.min_dim_size_to_factor": "training.Adafactor.min_dim_size_to_factor",
    "adafactor.Adafactor.multiply_by_parameter_scale": (
        "training.Adafactor.multiply_by_parameter_scale"
    ),
    "adafactor.Adafactor.weight_decay_rate_lr_exponent": (
        "training.Adafactor.weight_decay_rate_lr_exponent"
    ),
    "adafactor.Adafactor.global_norm_clip_threshold": "training.Optimizer.clip_norm",
    "adafactor.Adafactor.logical_factor_rules": "none: t5x's standard ones",
    "adafactor.Adafactor.learning_rate": "training.TrainConfig.schedule",
    "adafactor.standard_logical_factor_rules": "none: the standard ones are always there",
    "optimizers": "training.Optimizer; whose name is 'adafactor', 'adamw' or 'muon'",
    "models.EncoderDecoderModel": "pipeline.run.model",
    "models.EncoderDecoderModel.z_loss": "training.TrainConfig.z_loss",
    "models.EncoderDecoderModel.label_smoothing": "training.TrainConfig.label_smoothing",
    "models.EncoderDecoderModel.loss_normalizing_factor": (
        "training.TrainConfig.loss_normalizing_factor"
    ),
    "models.EncoderDecoderModel.optimizer_def": "training.TrainConfig.optimizer",
    "models.EncoderDecoderModel.decode_fn": "none: the docids that there are are searched",
    "models.EncoderDecoderModel.predict_batch_with_aux": (
        "pipeline.EvalConfig.beam and pipeline.infer.beam"
    ),
    "models.DecoderParams": "pipeline.EvalConfig.beam and pipeline.infer.beam",
    "models.get_input_vocabulary": "pipeline.DataConfig.sentencepiece",
    "models.get_output_vocabulary": "none: docid tokens, made from the docids",
    "decoding": "none: the docids that there are are searched; beams are pipeline.EvalConfig.beam",
    "network.Transformer": "pipeline.run.model; its fields are models.T5Config's",
    "network.T5Config": "models.T5Config, beside a file of gin/models too",
    "train_script.train": "pipeline.run",
    "train_script.train.total_steps": "training.TrainConfig.steps",
    "train_script.train.random_seed": "training.TrainConfig.seed",
    "train_script.train.stats_period": "training.TrainConfig.log_period",
    "train_script.train.eval_period": "none: evaluated once, after training",
    "train_script.train.eval_steps": "none: evaluated on all queries, after training",
    "train_script.train.relative_steps": "training.TrainConfig.steps",
    "train_script.precompile": "none: gr-jax compile does that, for TPUs that are not there too",
    "eval_script.evaluate": "pipeline.evaluate",
    "eval_script.evaluate.output_dir": "pipeline.evaluate.output_dir",
    "infer_script.infer": "pipeline.infer",
    "infer_script.infer.output_dir": "pipeline.infer.output_dir",
    "infer_script.infer.mode": "none: docids are written with their scores",
    "infer_script.infer.checkpoint_period": "none: a run file is written at the end",
    "infer_script.infer.shard_id": "none: split the queries file, and infer each part",
    "infer_script.infer.num_shards": "none: split the queries file, and infer each part",
    "infer_script.create_task_from_tfexample_file": "pipeline.infer.queries",
    "seqio.Evaluator": "pipeline.EvalConfig",
    "seqio.JSONLogger": "none: run files hold all queries",
    "seqio.SentencePieceVocabulary": "pipeline.DataConfig.sentencepiece",
    "seqio.ByteVocabulary": "pipeline.DataConfig.sentencepiece; 'bytes'",
    "seqio": "none: tasks, features and their vocabularies are made from CORPUS and SENTENCEPIECE",
    "gin_utils": "none: the whole configuration is in config.gin",
}

FILES = {
    "config.gin": "config.gin",
    "model-info.txt": "model-info.txt",
    "checkpoint_N/": "checkpoint_N/; Orbax, and gr-jax convert writes t5x's",
    "train/events.out.tfevents.*": "train/events*.tfevents.*",
    "training_eval/TASK/": "none: no loss is computed on evaluation queries",
    "inference_eval/TASK-metrics.jsonl": "report.json; and report.html",
    "inference_eval/TASK-STEP.jsonl": "runs/SPLIT.gr_jax.run; TREC's format",
    "TASK-predict.jsonl-00000-of-00001": "runs/QUERIES.infer.run; TREC's format",
}

METRICS = {
    "accuracy": "accuracy; of tokens, as in t5x",
    "loss": "none: a step's sum; loss here is the mean over target tokens",
    "loss_per_nonpadding_target_token": "loss",
    "loss_per_all_target_tokens": "none: padding counts in it",
    "cross_ent_loss": "none: a step's sum; loss less z_loss is the mean",
    "cross_ent_loss_per_all_target_tokens": "none: padding counts in it",
    "z_loss": "z_loss; the mean over target tokens, t5x's is a step's sum",
    "z_loss_per_all_target_tokens": "none: padding counts in it",
    "learning_rate": "learning_rate",
    "weight_gradient_norm": "gradient_norm",
    "weight_rms": "none: not logged",
    "weight_gradient_rms": "none: not logged",
    "weight_update_rms": "none: not logged",
    "non_padding_fraction/encoder": "padding_fraction; 1 less t5x's",
    "non_padding_fraction/decoder": "none: not logged",
    "non_padding_fraction/overall": "none: not logged",
    "non_padding_fraction/loss_weights": "none: not logged",
    "effective_batch_size/encoder": "none: BATCH_SIZE examples in every step",
    "effective_batch_size/decoder": "none: BATCH_SIZE examples in every step",
    "timing/seqs_per_second": "examples_per_second; t5x's counts packed rows",
    "timing/steps_per_second": "steps_per_second",
    "timing/target_tokens_per_second": "tokens_per_second; of input tokens, real ones only",
    "timing/seqs_per_second_per_core": "none: divide examples_per_second",
    "timing/target_tokens_per_second_per_core": "none: divide tokens_per_second",
    "timing/seconds": "none: log_period / steps_per_second",
    "timing/compilation_seconds": "none: a run's, in train/goodput.jsonl",
    "timing/checkpoint_seconds": "none: saved in the background; waits are in train/goodput.jsonl",
}

_MODEL = re.compile(r"(?<![a-z])(umt5|byt5|mt5|t5_1_0|t5_1_1)(?!\d)")
_SIZE = re.compile(r"(?:.*_)?(tiny|small|base|large|xl|xxl|3b|11b)(?:_.*)?")


def kept(answer: str) -> bool:
    """Whether t5x's name is ours as well."""
    return answer.partition(";")[0] == "the same"


def refusal(name: str, answer: str) -> str:
    """One line for a name of t5x's that is not ours."""
    reason = answer.removeprefix("none: ")
    if reason != answer:
        return f"{name} of t5x is not there: {reason}"
    return f"{name} is t5x's; here it is {answer}"


def explain(error: str) -> str | None:
    """What there is instead of the name of t5x's that gin does not know; None if it is not one.

    Args:
      error: gin's message, on one line.
    """
    if found := re.search(r"Unable to open file: \S*?t5x/(\S+\.gin)", error):
        return refusal(f"gin: t5x/{found[1]}", _gin_file(found[1]))
    if "No module named 't5x'" in error:
        return f"{error}: a file for t5x; gr_jax has gin/runs/beir.gin and gin/models"
    wrong = r"Configurable '(?:\w+/)*(?:\w+\.)*(\w+)' doesn't have a parameter named '(\w+)'"
    if found := re.search(wrong, error):  # ours and t5x's have the name, and not the parameter
        return _setting(f"{found[1]}.{found[2]}")
    unknown = r"No configurable matching (?:reference )?'@?(?:\w+/)*([\w.]+)(?:\(\))?'"
    if not (found := re.search(unknown, error)):
        return None
    name = found[1]
    parameter = re.search(rf"{re.escape(name)}\.(\w+)", error[found.end() :])
    answers = [_setting(f"{name}.{parameter[1]}")] if parameter else []
    modules = [refusal(f"gin: {name}", SETTINGS[m]) for m in name.split(".") if m in SETTINGS]
    return next((a for a in (*answers, _setting(name), *modules) if a), None)


def _setting(asked: str) -> str | None:
    """The answer to a configurable, or one of its parameters, that is t5x's."""
    for theirs, ours in SETTINGS.items():
        # the module may be left out, or be a longer path to the same
        if f".{theirs}".endswith(f".{asked}") or f".{asked}".endswith(f".{theirs}"):
            return refusal(f"gin: {asked}", ours)
    return None


def _gin_file(path: str) -> str:
    """What there is for a gin file of t5x's, of a model, of a run, or of both."""
    folder, _, file = path.removesuffix(".gin").rpartition("/")
    families, size = _MODEL.findall(path), _SIZE.fullmatch(file.lower())
    if folder.endswith("configs/runs"):
        return "gin/runs/beir.gin"
    if families and size:
        family = "t5" if families[-1] == "t5_1_0" else families[-1]
        ours = f"gin/models/{family}_{size[1]}.gin"
        if (RESOURCES / ours).exists():
            alone = file.lower() in (size[1], f"{families[-1]}_{size[1]}")
            return ours if alone else f"gin/runs/beir.gin, with {ours}"
    return "gin/runs/beir.gin, with a file of gin/models"
