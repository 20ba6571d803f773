"""Training of draft heads: from conversations to a checkpoint that a decoder loads.

    config.py     what a training spec may say
    sources.py    conversations and plain texts;  records.py, tables.py  the files they are in
    template.py   their tokens and which of them count
    corpus.py     tokenised conversations, kept in one file;  prepare.py  the one of a spec
    packing.py    batches of fixed length
    features.py   features of the frozen target;  shards.py, layout.py  the same, kept in files
    noise.py, losses.py  the objective
    loop.py       the training loop;  schedule.py  its learning rate
    processes.py  those that train together;  sharding.py  a head cut over them
    run.py        a whole run and its files;  fit.py  whether its parts go together
    state.py      what resuming needs;  journal.py  the log
    report.py     curves read from logs;  figure.py  drawn
    regenerate.py the target's own answers;  talks.py  to whom;  ledger.py  kept through kills
    fingerprint.py  tells targets apart
    levels.py     the head fed with its own predictions, at every position at once
    replay.py     tau and n-alpha from the ranks of true tokens
    evaluate.py   those ranks, from prompts;  measure.py  the figures of a run

Importing a module of this package loads torch; the command line does so inside its commands.
"""
