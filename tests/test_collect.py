"""The table of a sweep: everything that was measured is in it."""

from experiments.collect import markdown


def test_probes_without_a_name_of_their_own_have_a_column():
    rows = {"aavae": {"semi_5": [0.5, 0.6], "knn": [0.7, 0.7]}, "raw pixels": {"knn": [0.3, 0.3]}}
    head, _, first, last = markdown(rows).splitlines()
    assert head == "| features | runs | kNN | semi_5 |"
    assert first == "| aavae | 2 | 70.0 ± 0.0 | 55.0 ± 7.1 |" and last == "| raw pixels | 2 | 30.0 ± 0.0 | – |"
