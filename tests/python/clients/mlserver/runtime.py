"""Model of MLServer that answers with its inputs, doubled where they are numbers. `sleep` waits as long as it says."""

import asyncio

import numpy
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


class Doubler(MLModel):
    async def predict(self, payload):
        outputs = []
        for given in payload.inputs:
            if given.datatype == "BYTES":
                texts = [text[::-1] for text in StringCodec.decode_input(given)]
                outputs.append(StringCodec.encode_output(given.name, texts))
            else:
                array = NumpyCodec.decode_input(given)
                if given.name == "sleep":
                    await asyncio.sleep(float(array.flat[0]))
                outputs.append(NumpyCodec.encode_output(given.name, numpy.asarray(array * 2, dtype=array.dtype)))
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)

    async def predict_stream(self, payloads):
        async for payload in payloads:
            yield await self.predict(payload)
