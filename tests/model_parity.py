import base64
import numpy as np
def decode_floats(case):
    return np.frombuffer(base64.b64decode(case["logits_f32_le_base64"]), "<f4").reshape(case["logits_shape"])
