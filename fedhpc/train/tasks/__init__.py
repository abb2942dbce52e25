"""A task is a Python module with four functions: a built-in (logistic, mlp, cnn, transformer) or a user's own file.

    model(options) -> torch.nn.Module           the model, on the CPU, drawn from torch's default generator
    dataset(path, options) -> Dataset           map-style: len(d), d[i] -> (x, y) tensors
    loss(model, batch) -> scalar tensor         the mean over the rows of batch = (x, y)
    sums(model, batch) -> dict[str, Tensor]     additive over rows; `n`, the number of rows, is required

`loss` must reach parameters through `model(x)` only: the model it is given may be wrapped for several ranks.
Of `sums`, every scalar is reported as its total / n, under its name; `hist_positive` and `hist_negative` [bins]
give AUC and average precision, and with `hist_expected`, as from tables.binary_sums, calibration; `sum_nats`,
`sum_tokens` and `sum_bytes` give what is told of text. More of a dataset is used where it has it:

    rows(indices) -> (x, y)                     a whole batch at once
    labels() -> ndarray [n]                     by which the split into training and held-out rows is stratified
    held_out_split(held_out, seed, site)        -> training rows, held-out rows: the split itself, where rows are cut
                                                from what must stay on one side, as windows of documents
    measure_rows                                as many rows at most go through sums() at once

A task with `fill(name, shape, generator) -> Tensor` gives the first value of each parameter by it, whatever model()
drew; so a rank can begin with its part of a model alone.
"""
