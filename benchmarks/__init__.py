"""Speed, measured side by side on the machine at hand: `python -m benchmarks [what …] [options]`, or `make bench`.

One file for each thing that can be measured; what was measured goes into a JSON with every raw sample, and a table.
"""
