"""What every quantizer is: a frozen configuration that turns a float tensor into narrower codes and parameters.

Single elements that cannot keep the promise are stored exactly beside the codes; a tensor with too many of them is
refused with NotQuantizableError, and the pipeline then stores it lossless and says so.
"""

from __future__ import annotations

import numpy as np
import torch

from tensordb.encoding.quantizers.floats import FLOAT_DTYPES, to_working
from tensordb.encoding.quantizers.mapping import CodeMap
from tensordb.encoding.quantizers.measuring import Quantization, Quantized, ranges_of
from tensordb.encoding.workers import for_each
from tensordb.errors import InvalidInputError
from tensordb.tensors import byte_view, dtype_from_name, nbytes_of, snapshot, spec_of, view_of


class Quantizer(CodeMap):
    """Float tensor to codes, parameters and exceptions, and back."""

    def quantize(self, tensor: torch.Tensor, *, page: bool = False) -> Quantized:
        """Return the codes and parameters of a tensor of dtype float16, bfloat16, float32 or float64.

        Args:
            tensor: Any shape with at least one element.
            page: Treat each row of dimension 0 as a tensor of its own.

        Raises:
            NotQuantizableError: if the codes cannot represent the values (too large, too small, too many not finite).
            InvalidInputError: if the dtype or shape does not fit.
        """
        plain = snapshot(tensor)
        spec = spec_of(plain)
        if spec.dtype not in FLOAT_DTYPES or plain.numel() == 0:
            raise InvalidInputError(
                f"{self.name} quantizes float16, bfloat16, float32 and float64, not {spec}; store it lossless"
            )
        return Quantization(self, plain, spec, page).run()

    def dequantize(self, quantized: Quantized) -> torch.Tensor:
        """Return the tensor that `quantized` stands for, in the original's dtype and shape."""
        spec = quantized.spec
        codes, dtype = byte_view(quantized.codes), self.parameter_dtype
        arrays = [to_working(byte_view(parameter), dtype) for parameter in quantized.parameters]
        where = self.parameter_map(spec, quantized.page)
        width, itemsize = dtype_from_name(self.codes_dtype).itemsize, dtype_from_name(spec.dtype).itemsize
        out = np.empty(nbytes_of(spec), np.uint8)
        ranges = ranges_of(where)

        def work(index: int) -> None:
            start, stop = ranges[index]
            near = where.stretch(start, stop, *(lambda a, b, array=array: array[a:b] for array in arrays))
            part = out[start * itemsize : stop * itemsize]
            self.restore(codes[start * width : stop * width], near, spec.dtype, part)
            if quantized.exceptions is not None:
                quantized.exceptions.put(part, start, stop)

        for_each(len(ranges), work)
        return view_of(out, spec)
