"""Other trainers' names of our options: taken where they mean the same, else answered with the option that does."""

from collections.abc import Collection, Sequence

from parity.errors import InputError

SAME = {  # ours: theirs
    "steps": "iters iterations max-iters max-steps max-iterations num-steps num-iterations num-train-steps train-steps "
    "n-steps total-steps training-steps",
    "context": "seq-len seq-length sequence-length block-size context-length context-len context-size max-seq-len "
    "max-seq-length train-seq-len",
    "layers": "n-layer n-layers num-layers num-hidden-layers depth blocks n-blocks num-blocks",
    "dim": "d-model n-embd n-embed model-dim embed-dim embedding-dim hidden-size hidden-dim width",
    "val-every": "eval-every eval-interval val-interval eval-freq val-freq val-loss-every validate-every",
    "save-every": "save-interval save-steps save-freq checkpoint-every checkpoint-interval ckpt-every ckpt-interval",
    "precision": "dtype",
    "devices": "gpus num-gpus n-gpus ngpu ngpus num-devices n-devices",
    "runs": "out out-dir output output-dir save-dir log-dir run-dir runs-dir",
    "name": "run-name exp-name experiment experiment-name run-id",
    "data-dir": "data data-path data-root datadir",
    "resume": "resume-from resume-from-checkpoint continue continue-from",
    "clip-norm": "grad-clip clip clip-grad max-grad-norm grad-clip-norm gradient-clip clip-grad-norm",
    "warmup-steps": "warmup warmup-iters num-warmup-steps lr-warmup-steps",
    "adam-eps": "eps epsilon adam-epsilon",
    "tokenizer-size": "n-vocab num-tokens",
    "compile": "torch-compile",
    "remat": "activation-checkpointing gradient-checkpointing checkpoint-activations",
    "optimizer-args": "optimizer-kwargs opt-args optim-args",
    "optimizer": "opt optim",
    "seed": "random-seed rng-seed",
}
RATES = "lr learning-rate max-lr peak-lr rate max-learning-rate"
DECAYS = "wd weight-decay decay"
OTHERS = {  # theirs: what to give instead
    "batch-size batch bs global-batch-size train-batch-size total-batch-size": "a batch is counted in tokens: give "
    "--batch-tokens, rows times --context",
    "micro-batch-size device-batch-size per-device-batch-size mbs": "a device's rows are divided by their number of "
    "pieces: give --microbatches",
    "grad-accum grad-accum-steps gradient-accumulation-steps accumulation-steps accum-steps accumulate": "pieces of a "
    "batch, which stays as large as it is: give --microbatches",
    "epochs num-epochs n-epochs epoch max-epochs num-train-epochs": "no token is read twice, so a run is counted in "
    "steps: give --steps",
    "tokens max-tokens train-tokens num-train-tokens": "a run is counted in steps of --batch-tokens: give --steps",
    "heads n-head n-heads num-heads num-attention-heads": "the number of heads is --dim / --head-dim: give --head-dim",
    "dataset data-set slice": "the track chooses the data: give --track",
    "model arch architecture model-name preset": "give --recipe NAME, or --program FILE for your own model",
    "config config-file cfg": "there are no config files: give --recipe and its fields as options",
    "min-lr min-learning-rate final-lr lr-scheduler schedule lr-schedule scheduler lr-decay-iters": "schedules are "
    "fields of the recipe, as --cooldown or --final-fraction: --help lists them",
    "beta1 beta2 beta adam-beta1 adam-beta2": "give both as --betas B1 B2",
    "cpu": "give --device cpu",
    "gpu cuda use-cuda": "give --device gpu",
    "bf16 bfloat16 amp fp16 fp32 float32 mixed-precision half": "give --precision bfloat16 or float32",
    "dropout": "no recipe has dropout: write it into a model of your own, --program FILE",
    "wandb wandb-project log-wandb use-wandb": "give --tensorboard, or read log.jsonl in the run directory",
    "checkpoint ckpt ckpt-path checkpoint-path load load-from": "give --resume RUN, the run's directory",
    "rank local-rank world-size nproc-per-node nnodes num-processes": "start processes with torchrun, or give "
    "--processes and --process",
}
TAKEN = {theirs: ours for ours, names in SAME.items() for theirs in names.split()}
ANSWERS = {theirs: text for names, text in OTHERS.items() for theirs in names.split()}


def our_names(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """A command line with the names of our options, of which `known` are those that there are, without dashes.

    Raises InputError, with the option to give, for one that means something else than any of ours.
    """
    user_optimizer = any(argument.partition("=")[0] in ("--optimizer", "--opt", "--optim") for argument in argv)
    return [_ours(argument, known, user_optimizer) if argument.startswith("--") else argument for argument in argv]


def _ours(argument: str, known: Collection[str], user_optimizer: bool) -> str:
    option, equals, value = argument.partition("=")
    name = option[2:].replace("_", "-")
    if name in known or (name.startswith("no-") and name[3:] in known):
        return argument
    if TAKEN.get(name) in known:
        return f"--{TAKEN[name]}{equals}{value}"
    if name in ANSWERS:
        raise InputError(f"{option}: {ANSWERS[name]}")
    for names, suffix, what in ((RATES, "-rate", "learning rate"), (DECAYS, "-decay", "weight decay")):
        if name in names.split():
            return _one_of_several(option, name, equals + value, sorted(k for k in known if k.endswith(suffix)), what,
                                   user_optimizer)  # fmt: skip
    return argument


def _one_of_several(option: str, name: str, rest: str, ours: list[str], what: str, user_optimizer: bool) -> str:
    """The recipe's only option of a kind; InputError where it has several, or a user optimizer has its own."""
    if user_optimizer:
        raise InputError(
            f"{option}: the user optimizer has the {what}: give --optimizer-args {name.replace('-', '_')}=..."
        )
    if len(ours) == 1:
        return f"--{ours[0]}{rest}"
    if not ours:
        raise InputError(f"{option}: the recipe has no {what}: leave it out")
    given = ", ".join(f"--{each}" for each in ours)
    raise InputError(f"{option}: the recipe has a {what} for each group of weights: give {given}")
