"""Forward operators of imaging: y = A(x)."""

if __name__ == "operators":  # found from the root of the repository, where it would be a second copy of every class
    raise ImportError("operators is a part of invsolve: import invsolve.operators instead.")

from .base import Chain, Compose, LinearOperator, Operator, PinvOperator, Shape
from .blur import CircularBlur, PaddedBlur
from .color import Grayscale
from .identity import Identity
from .inpaint import Inpaint
from .jpeg import JPEG
from .matrix import Matrix
from .resize import Separable
from .separable_blur import SeparableBlur
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
    "SeparableBlur",
    "Shape",
    "SpectralOperator",
    "build_operator",
    "image_shape_of",
    "operator_fields",
]
