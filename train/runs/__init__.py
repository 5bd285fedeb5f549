"""A run on disk and its life: `folder` (what may be written, what it goes on from), `checkpoint` (reading one), `training_state` (saving and
restoring one), `state` (its state.json), `logs`, `progress`, `preemption`.

Everything is written aside and renamed, so that a kill leaves the last good state; keep it so. What state.json holds may change only with
`state.SCHEMA_VERSION`; which options --resume may change is `folder.MAY_CHANGE`.
"""
