"""Training of draft heads: from conversations to a checkpoint that a decoder loads.

    spec        what a training spec may say
    data        from files to batches of tokens, and which of them count
    objective   losses, levels on the head's own predictions, noise, the learning rate
    features    of the frozen target, over whole texts
    evaluation  rank replay, its figures, and the curves of runs
    run         one run: its loop, its files, its processes

Each is a room with a face of its own. Importing one loads torch; the command line does so inside
its commands.
"""

__all__ = ["data", "evaluation", "features", "objective", "run", "spec"]
