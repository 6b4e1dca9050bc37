"""What a conditional network is asked with: prompts, a negative one, and how closely they are followed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .backbone import Backbone, Condition
from .backbones import Flux
from .predictor import Guidance

__all__ = ["Prompts"]

LOG = logging.getLogger("invsolve")
DISTILLED_GUIDANCE = 3.5  # of FLUX.1-dev, where none is asked for


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a conditional network is asked with.

    Arguments:
        texts: the prompts, each once; "" is none.  For networks that know classes: the number of a class.
        negative: the prompt to move away from; "" is none.
        scale: guidance scale; 1 asks with the prompt alone.  None is what the card of the prior says where there is
            a prompt, else 1.
        device: where the text encoders compute.
        cache: folder of the embeddings; by default `cache_folder()`.
    """

    texts: tuple[str, ...] = ("",)
    negative: str = ""
    scale: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None

    def __post_init__(self) -> None:
        for text in (*self.texts, self.negative):
            if any("\ud800" <= letter <= "\udfff" for letter in text):  # what the shell gave was not UTF-8
                raise ValueError(f"The prompt {text!r} is not text in UTF-8; type it again.")
        if not self.texts or len(set(self.texts)) < len(self.texts):
            raise ValueError(f"Prompts.texts must hold each prompt once, got {list(self.texts)}.")
        if not 1 <= self.guidance <= 100:
            raise ValueError(f"The guidance scale must be 1 to 100, got {self.guidance}; 1 is without guidance.")

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return 1.0 if self.scale is None else self.scale

    def needed(self, kind: type[Backbone], has_encoders: bool) -> list[str]:
        """The texts that must be encoded before the network is loaded.

        Raises:
            ValueError: there is a negative prompt and no guidance, or guidance and nothing to follow.
        """
        if self.negative and self.guidance == 1:
            raise ValueError(
                "A negative prompt has no effect at a guidance scale of 1; raise the scale, for example to 4."
            )
        if not kind.pipeline:
            return []
        if self.guidance > 1 and not any(self.texts) and not self.negative and kind is not Flux:
            raise ValueError(
                f"A guidance scale of {self.scale} has no effect without a prompt; give one, or leave it at 1."
            )
        wanted = {*self.texts, *([self.negative] if self.guidance > 1 else [])}
        if not has_encoders or not (kind.nothing == "empty prompt" or (kind.encodes_no_negative and any(wanted))):
            wanted.discard("")
        return sorted(wanted)

    def guidances(self, backbone: Backbone, encoded: dict[str, Condition]) -> dict[str, Guidance]:
        """What the network is asked with for each text, given the embeddings of those that were `needed`.

        Raises:
            ValueError: the network takes no prompt, or not such a one.
        """
        if backbone.embeds_guidance:
            if self.negative:
                raise ValueError(
                    "This network takes the guidance scale as an input and no negative prompt; leave it out."
                )
            scale = torch.tensor([DISTILLED_GUIDANCE if self.scale is None else self.scale])
            return {
                text: Guidance({**self._condition(text, backbone, encoded), "guidance": scale}) for text in self.texts
            }
        negative = self._condition(self.negative, backbone, encoded) if self.guidance > 1 else None
        if negative == {}:
            raise ValueError(f"This prior takes no prompt, hence no guidance scale of {self.guidance}; leave it at 1.")
        return {
            text: Guidance(self._condition(text, backbone, encoded), negative, self.guidance) for text in self.texts
        }

    @staticmethod
    def _condition(text: str, backbone: Backbone, encoded: dict[str, Condition]) -> Condition:
        if text in encoded:
            return encoded[text]
        zeros = backbone.zeros()
        if not text:
            if backbone.nothing == "empty prompt":
                LOG.warning(
                    "There is no text encoder for the empty prompt; zeros stand for it, which it was not trained on."
                )
            return zeros
        if "class_labels" not in zeros:
            raise ValueError(f"This prior takes no prompt, got {text!r}; leave it out.")
        classes = int(zeros["class_labels"])
        if not (text.isdecimal() and len(text) <= 6 and int(text) < classes):
            raise ValueError(
                f"This prior knows classes by number; the prompt must be 0 to {classes - 1}, got {text[:80]!r}."
            )
        return {"class_labels": torch.tensor([int(text)])}
