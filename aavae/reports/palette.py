"""Colours and marks: the same for a method in every picture, and told apart by the colour-blind and in grey."""

# Petroff (2021), "Accessible Color Sequences for Data Visualization": ten that the colour-blind can tell apart.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
MARKERS = "oDs^vPX<>p"  # one a colour: they tell points apart in grey, too
LINES = ("-", "--", "-.", ":")
DASHES = ("solid", "dash", "dashdot", "dot")  # Plotly's names of LINES
# Nuñez et al. (2018), Cividis, in eleven steps: evenly lighter, in grey too.
CIVIDIS = (
    "#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78", "#948e77", "#aea371", "#c8b866", "#e5cf52",
    "#fee838",
)  # fmt: skip
METHODS = (
    "aavae", "vae", "aaae", "ae", "aaae_denoise", "aavae_mean", "simclr", "byol", "dae", "moco", "amdim", "yadim",
    "cpc", "simsiam", "barlow", "vicreg",
)  # fmt: skip


def colour_of(name: str, n: int) -> str:
    """The colour of a method; of anything else, that of its number."""
    return COLOURS[(METHODS.index(name) if name in METHODS else n) % len(COLOURS)]


def marker_of(name: str, n: int) -> str:
    """Its marker; where a colour comes again, another one goes with it."""
    n = METHODS.index(name) if name in METHODS else n
    return MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]
