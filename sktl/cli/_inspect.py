"""``sktl inspect``: what is in a saved model."""

from sktl.persistence import inspect, make_card


def run_inspect(arguments) -> int:
    """Say what is in a saved model.

    Parameters
    ----------
    arguments : argparse.Namespace
        What was written on the command line.

    Returns
    -------
    code : int
        0.
    """
    info = inspect(arguments.model)
    print(make_card(info) if arguments.card else info)
    return 0
