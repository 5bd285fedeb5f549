"""A run on disk and its life: `folder` (what may be written, what it goes on from), `checkpoint`, `logs`, `progress`, `preemption`.

Everything is written aside and renamed, so that a kill leaves the last good state; keep it so. What state.json holds may change only with
`checkpoint.SCHEMA_VERSION`; which options --resume may change is `folder.MAY_CHANGE`.
"""
