"""Linear layers that store integers, one a file.

    DynamicQuantizedLinear   dynamic.py       int8 weights and activations; one activation scale per token
    StaticQuantizedLinear    static.py        int8 weights and activations; one activation scale, calibrated beforehand
    Int8WeightLinear         int8_weight.py   int8 weights, float activations
    Int4WeightLinear         int4_weight.py   packed 4-bit weights with group scales and zero points, float activations
    QuantizedLinear          packed.py        any QuantizedWeight, 2 to 8 bits; dequantizes at every call

integer.py and int8.py hold what they share.
"""
