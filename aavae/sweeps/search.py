"""Resume an Optuna study: the trials that a stopped launch was busy with are tried again."""

import warnings


def ask_again(name: str, storage: str) -> int:
    """Make the trials that the study `name` in `storage` believes to be running the next ones it asks for; how many.

    Nobody else may be at work on the study.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:  # it has not begun
        return 0
    left = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    for trial in left:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.enqueue_trial(trial.params)
    return len(left)
