"""How large the student may be."""

MAX_PARAMETERS = 1300  # 64 -> 16 -> 10 has 1,210 of them
MAX_NONZERO = 650  # half of those weights, and all biases, are 618
