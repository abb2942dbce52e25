"""A task is a Python module with four functions. Built-ins: logistic, mlp, cnn; or a site's copy of a user's file.

    model(options) -> torch.nn.Module           the model, on the CPU, drawn from torch's default generator
    dataset(path, options) -> Dataset           map-style: len(d), d[i] -> (x, y) tensors
    loss(model, batch) -> scalar tensor         the mean over the rows of batch = (x, y)
    sums(model, batch) -> dict[str, Tensor]     additive over rows; `n`, the number of rows, is required

`loss` must reach parameters through `model(x)` only: the model it is given may be wrapped for several ranks.
Of `sums`, every scalar is reported as its total / n, under its name; `hist_positive` and `hist_negative` [bins]
give AUC and average precision, and with `hist_expected`, as from tables.binary_sums, calibration. Two more methods
of a dataset are used where it has them: `rows(indices) -> (x, y)`, a whole batch at once, and `labels() -> ndarray
[n]`, by which the split into training and held-out rows is stratified.
"""
