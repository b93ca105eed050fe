"""The paper's table and figures, one module each: `python -m experiments.table1 scale=smoke`."""
