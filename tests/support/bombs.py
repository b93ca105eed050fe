"""YAML that takes no memory to write and much to read."""

# Eight lines that stand for 10⁸ values, and what is nested too deep to be read.
BOMB = "a0: &a0 [0]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
