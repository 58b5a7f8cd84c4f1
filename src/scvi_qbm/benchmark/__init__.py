"""The second door: methods compared by their embeddings, and samplers by their samples.

Read ``config`` (what to compare), ``run`` (every row that is missing), ``measure`` (one row: fit,
embed, score), ``scores`` (all scores of an embedding), ``rows`` (where they are kept), ``report``.
A method is one function in ``methods``, a group of metrics one function in ``metrics``.
"""
