"""Forward operators of imaging: y = A(x)."""

from .base import Chain, Compose, LinearOperator, Operator, PinvOperator, Shape
from .blur import CircularBlur, PaddedBlur
from .color import Grayscale
from .identity import Identity
from .inpaint import Inpaint
from .jpeg import JPEG
from .matrix import Matrix
from .resize import Separable
from .sizes import image_shape_of
from .spectral import SpectralOperator
from .table import OPERATORS, build_operator, operator_fields

__all__ = [
    "JPEG",
    "OPERATORS",
    "Chain",
    "CircularBlur",
    "Compose",
    "Grayscale",
    "Identity",
    "Inpaint",
    "LinearOperator",
    "Matrix",
    "Operator",
    "PaddedBlur",
    "PinvOperator",
    "Separable",
    "Shape",
    "SpectralOperator",
    "build_operator",
    "image_shape_of",
    "operator_fields",
]
