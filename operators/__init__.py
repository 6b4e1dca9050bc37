"""Forward operators of imaging: y = A(x)."""

from .base import Chain, Compose, LinearOperator, Operator, PinvOperator, Shape
from .blur import Blur
from .color import Grayscale
from .identity import Identity
from .inpaint import Inpaint
from .jpeg import JPEG
from .resize import Separable
from .table import OPERATORS, build_operator, operator_fields

__all__ = [
    "JPEG",
    "OPERATORS",
    "Blur",
    "Chain",
    "Compose",
    "Grayscale",
    "Identity",
    "Inpaint",
    "LinearOperator",
    "Operator",
    "PinvOperator",
    "Separable",
    "Shape",
    "build_operator",
    "operator_fields",
]
