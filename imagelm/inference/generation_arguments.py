"""The options that say how new tokens are generated, and which images are wanted.

One idea: those of sampling have the names and the meaning of transformers' GenerationConfig, and what they can't give
together is refused. The command and the service take the same ones. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from imagelm.utils.command_line import MAX_SEED, OptionGroup, option
from imagelm.utils.errors import InputError

# Metadata: the modes of `imagelm infer` that an option works in.
SAMPLING = {"modes": ("generate", "continue", "interactive")}
SAMPLES = {"modes": ("generate", "interactive")}
KEEP_PERCENT = 50  # of a complete image, in continue
MIN_TEMPERATURE = 1e-3  # far below it, logits divided by it are no longer finite


@dataclass
class GenerationArguments(OptionGroup):
    """How tokens are generated; names and meaning as in transformers' GenerationConfig."""

    do_sample: bool = option(
        "sample tokens at random; the default of generate",
        False,
        group="Generation (generate, continue), as in transformers' GenerationConfig",
        **SAMPLING,
    )
    greedy: bool = option(
        "always take the most probable token; continue does so unless another option samples", False, **SAMPLING
    )
    temperature: float | None = option("temperature of sampling; 1 if not given", None, **SAMPLING)
    top_k: int | None = option(
        "sample from the k most probable tokens; 0 or not given: all", None, minimum=0, **SAMPLING
    )
    top_p: float | None = option("sample from the smallest set of tokens with this probability", None, **SAMPLING)
    num_beams: int = option("beam search with this many beams; 1: off", 1, minimum=1, **SAMPLING)
    repetition_penalty: float = option("above 1, tokens repeat less; 1: off", 1.0, **SAMPLING)
    no_repeat_ngram_size: int = option("no n-gram of this size occurs twice; 0: off", 0, minimum=0, **SAMPLING)
    num_return_sequences: int = option("continuations of each row", 1, minimum=1, modes=("continue", "interactive"))
    seed: int = option(
        "seed of sampling; another --batch_size gives other samples", 42, minimum=0, maximum=MAX_SEED, **SAMPLING
    )
    no_grammar: bool = option("let the model write any token, even if no valid image results", False, **SAMPLING)
    num_image_tokens: int | None = option(
        "tokens of an image, for a model without codec; otherwise the model ends the image itself",
        None,
        minimum=1,
        **SAMPLING,
    )
    keep_percent: float | None = option(
        "share of a complete image to keep: its top P %, in rows of the grid; continue keeps "
        f"{KEEP_PERCENT} if not given; cut rows are used as they are",
        None,
        metavar="P",
        modes=("continue", "next_token", "interactive"),
    )

    def __post_init__(self) -> None:
        if self.do_sample and self.greedy:
            raise InputError("--do_sample and --greedy contradict each other; remove one of them")
        sampling = [f"--{name}" for name in ("temperature", "top_k", "top_p") if getattr(self, name) is not None]
        if self.greedy and sampling:
            raise InputError(f"{' and '.join(sampling)} without effect: --greedy doesn't sample; remove one of them")
        if self.temperature is not None and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise InputError(
                f"--temperature {self.temperature}: give {MIN_TEMPERATURE} or more, such as 0.9; "
                "--greedy always takes the most probable token"
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"--repetition_penalty {self.repetition_penalty}: give a positive number, such as 1.2")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top_p {self.top_p} isn't a share; give one above 0 and up to 1, such as 0.95")
        super().__post_init__()
        if self.keep_percent is not None and not 0 < self.keep_percent <= 100:
            raise InputError(f"--keep_percent {self.keep_percent}: give a number above 0 and up to 100")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"--num_return_sequences {self.num_return_sequences} is more than --num_beams {self.num_beams}; "
                "a beam gives one sequence, so give at most as many"
            )

    def samples(self, mode: str) -> bool:
        """Whether tokens are sampled: if asked, or if another option only makes sense with sampling."""
        asked = self.do_sample or any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        if self.greedy or asked or self.num_beams > 1:
            return asked
        return mode == "generate" or self.num_return_sequences > 1


@dataclass
class ClassArguments(OptionGroup):
    """How many images to generate, and of which class."""

    num_samples: int = option("number of images", 8, minimum=1, group="Samples of generate", modes=("generate",))
    class_name: str | None = option(
        "generate images of this class, by name or number", None, flag="--class", metavar="CLASS", modes=("generate",)
    )
    condition: str = option(
        "rejection: sample until enough samples have the class; likelihood: of every --num_candidates samples keep "
        "the one with the highest probability of the class",
        "rejection",
        choices=("rejection", "likelihood"),
        **SAMPLES,
    )
    max_draws: int = option("rejection gives up after this many samples per image", 100, minimum=1, **SAMPLES)
    num_candidates: int = option("samples per image for likelihood", 8, minimum=1, **SAMPLES)


def check_samples(mode: str, generation: GenerationArguments, classes: ClassArguments) -> None:
    """Raises an InputError if the same image would be generated several times."""
    if mode == "continue" and generation.greedy and generation.num_beams == 1 < generation.num_return_sequences:
        raise InputError("--greedy gives one continuation; remove --num_return_sequences, or give --num_beams")
    if mode != "generate" or generation.samples(mode):
        return
    if classes.class_name is not None:
        raise InputError("--class needs many different images to choose from; sample them (--do_sample)")
    if classes.num_samples > generation.num_beams:
        raise InputError(
            f"without sampling --num_beams {generation.num_beams} gives at most {generation.num_beams} different "
            f"images; sample (--do_sample), or give --num_samples {generation.num_beams}"
        )
