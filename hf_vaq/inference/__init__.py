"""How a packed model computes: in integer arithmetic where the device has it, else as a float simulation of it."""

from .agreement import CodeAgreement, code_agreement
from .backends import IntegerUnsupportedError, integer_backend
from .compilation import CompiledModel, compile_model
from .execution import EXECUTIONS, set_execution, simulated_modules

__all__ = [
    "EXECUTIONS",
    "CodeAgreement",
    "CompiledModel",
    "IntegerUnsupportedError",
    "code_agreement",
    "compile_model",
    "integer_backend",
    "set_execution",
    "simulated_modules",
]
