"""int4 from measured activations: GPTQ a layer at a time, and 8 bits for the matrices that hurt most.

`texts` says what the model reads, `sweep` carries it through the float32 graph one layer (`segments`) at a time, `gptq`
rounds each matrix by what it read, and `choice` spends the bits of a budget where rounding did most damage.
"""
