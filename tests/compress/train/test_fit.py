import dataclasses

import msgspec
import numpy as np
import pytest
import tf_keras

from compress.data.task import Split
from compress.train.fit import EarlyStopping, EpochEnd, Fit, TrainingFiles, fit
from compress.train.losses import Brier, targets
from compress.train.optimizers import Adam, AdamW, GradientDescent, RmsProp, Sgd
from compress.train.schedules import Cosine, OneCycle, Plateau
from deploy.errors import UserError
from deploy.machine import this_environment


def network(units=8, classes=3, activation="softmax", dropout=0.0, activation_inside="relu"):
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            tf_keras.layers.Flatten(input_shape=(8, 8, 1)),
            tf_keras.layers.Dense(units, activation=activation_inside, name="dense1"),
            tf_keras.layers.Dropout(dropout),
            tf_keras.layers.Dense(classes, activation=activation, name="dense2"),
        ]
    )


def without_validation(task):
    return dataclasses.replace(
        task, validation=Split(raw=task.train.raw[:0], x=task.train.x[:0], y=task.train.y[:0])
    )


def trained(task, seed, **settings):
    model = network(dropout=0.3)
    fit(model, task, Fit(**{"epochs": 2, "batch_size": 32} | settings), seed=seed)
    return model.get_weights()


def decode(**fields):
    return msgspec.convert(fields, Fit)


def test_training_learns_the_task(tiny_task):
    history = fit(network(), tiny_task, Fit(epochs=8, batch_size=8), seed=0)
    assert history.epochs[-1]["val_accuracy"] > 0.9
    assert history.kept_epoch == len(history.epochs) == 8


def test_the_brier_loss_is_the_distance_to_the_one_hot_class(tiny_task):
    model = network()
    config = Fit(epochs=8, batch_size=8, loss=Brier())
    history = fit(model, tiny_task, config, seed=0)
    wanted = np.eye(3)[tiny_task.validation.y]
    by_hand = np.mean(np.sum((model.predict(tiny_task.validation.x) - wanted) ** 2, axis=1))
    assert history.epochs[-1]["val_loss"] == pytest.approx(by_hand, abs=1e-5)
    assert history.epochs[-1]["val_accuracy"] > 0.9


def test_the_same_seed_gives_the_same_bits_and_another_seed_gives_others(tiny_task):
    first, again, other = (trained(tiny_task, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "optimizer",
    [
        Adam(amsgrad=True),
        AdamW(),
        Sgd(nesterov=True),
        RmsProp(centered=True, momentum=0.5),
        GradientDescent(learning_rate=0.5),
    ],
)
def test_every_optimizer_lowers_the_loss_under_a_cosine_schedule(tiny_task, optimizer):
    config = Fit(epochs=3, batch_size=16, optimizer=optimizer, schedule=Cosine(warmup_epochs=0.5))
    losses = [epoch["loss"] for epoch in fit(network(), tiny_task, config, seed=0).epochs]
    assert losses[-1] < losses[0]


def test_adamw_decays_kernels_and_leaves_biases_alone(tiny_task):
    model = network()
    optimizer = AdamW(learning_rate=1e-9, weight_decay=1e8)
    kernel, bias = model.get_layer("dense1").get_weights()
    model.get_layer("dense1").set_weights([kernel, bias + 1])
    fit(model, tiny_task, Fit(epochs=1, batch_size=192, optimizer=optimizer), seed=0)
    decayed, kept = model.get_layer("dense1").get_weights()
    assert np.allclose(decayed, 0.9 * kernel, atol=1e-6)
    assert np.allclose(kept, 1, atol=1e-6)


def test_early_stopping_keeps_the_best_epoch_and_stops_when_patience_is_over(tiny_task):
    model = network()
    config = Fit(
        epochs=30,
        batch_size=16,
        optimizer=Adam(learning_rate=0.1),
        early_stopping=EarlyStopping(metric="val_accuracy", patience=2),
    )
    ends = []
    history = fit(model, tiny_task, config, seed=0, on_epoch=ends.append)
    assert [end.last for end in ends] == [False] * (len(ends) - 1) + [True]
    accuracies = [epoch["val_accuracy"] for epoch in history.epochs]
    assert history.kept_epoch == 1 + int(np.argmax(accuracies))
    assert len(accuracies) == history.kept_epoch + 2 < 30
    validation = tiny_task.validation.x, targets(tiny_task, tiny_task.validation.y)
    loss, _ = model.evaluate(*validation, verbose=0)
    assert loss == pytest.approx(history.epochs[history.kept_epoch - 1]["val_loss"], abs=1e-6)


def test_a_smaller_validation_loss_is_the_better_one(tiny_task):
    config = Fit(
        epochs=4, batch_size=16, early_stopping=EarlyStopping(metric="val_loss", patience=1)
    )
    history = fit(network(), tiny_task, config, seed=0)
    losses = [epoch["val_loss"] for epoch in history.epochs]
    assert losses == sorted(losses, reverse=True)
    assert history.kept_epoch == 4


def test_the_best_weights_come_back_even_when_the_epochs_run_out_first(tiny_task):
    model = network()
    config = Fit(
        epochs=4,
        batch_size=16,
        optimizer=Sgd(learning_rate=1e-2),
        early_stopping=EarlyStopping(metric="val_accuracy", patience=50, min_delta=0.99),
    )
    history = fit(model, tiny_task, config, seed=0)
    assert (history.kept_epoch, len(history.epochs)) == (1, 4)
    validation = tiny_task.validation.x, targets(tiny_task, tiny_task.validation.y)
    loss, _ = model.evaluate(*validation, verbose=0)
    assert loss == pytest.approx(history.epochs[0]["val_loss"], abs=1e-6)
    assert loss > history.epochs[-1]["val_loss"] + 0.01


def test_early_stopping_cannot_keep_an_epoch_before_keep_from(tiny_task):
    config = Fit(
        epochs=4,
        batch_size=16,
        optimizer=Sgd(learning_rate=1e-9),
        early_stopping=EarlyStopping(metric="val_accuracy", patience=1, min_delta=0.5),
    )
    history = fit(network(), tiny_task, config, seed=0, keep_from=3)
    assert (history.kept_epoch, len(history.epochs)) == (3, 4)


def test_on_epoch_is_told_about_every_epoch_and_nothing_is_printed(tiny_task, capfd):
    seen = []
    fit(network(), tiny_task, Fit(epochs=2, batch_size=64), seed=0, on_epoch=seen.append)
    assert capfd.readouterr().out == ""
    assert [(end.epoch, end.epochs, end.last) for end in seen] == [(1, 2, False), (2, 2, True)]
    assert all(isinstance(end, EpochEnd) and end.seconds > 0 for end in seen)
    assert set(seen[0].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_the_test_split_is_never_read(tiny_task):
    blind = dataclasses.replace(tiny_task, test=None)
    fit(network(), blind, Fit(epochs=1, batch_size=64), seed=0)


def test_a_task_without_validation_samples_can_be_trained_on(tiny_task):
    history = fit(network(), without_validation(tiny_task), Fit(epochs=1, batch_size=64), seed=0)
    assert set(history.epochs[0]) == {"loss", "accuracy"}


def test_early_stopping_without_validation_samples_is_refused(tiny_task):
    config = Fit(epochs=1, batch_size=64, early_stopping=EarlyStopping(patience=1))
    with pytest.raises(UserError, match="early_stopping: val_loss needs validation samples"):
        fit(network(), without_validation(tiny_task), config, seed=0)


def test_a_batch_larger_than_the_training_split_is_refused(tiny_task):
    with pytest.raises(UserError, match="batch_size: 193 is more than the 192 training samples"):
        fit(network(), tiny_task, Fit(epochs=1, batch_size=193), seed=0)


def with_nan(task, split):
    part = getattr(task, split)
    x = part.x.copy()
    x[1:] = np.nan  # the first sample is looked at before training
    return dataclasses.replace(task, **{split: dataclasses.replace(part, x=x)})


def test_a_loss_that_explodes_stops_with_epoch_step_and_learning_rate(tiny_task):
    config = Fit(epochs=1, batch_size=96, optimizer=Adam(learning_rate=3e-3))
    with pytest.raises(
        UserError, match=r"loss became nan in epoch 1 at step [12] with learning rate 0\.003"
    ):
        fit(network(activation_inside="tanh"), with_nan(tiny_task, "train"), config, seed=0)


def test_a_validation_loss_that_is_not_finite_stops_too(tiny_task):
    with pytest.raises(UserError, match="val_loss became nan in epoch 1 at its end"):
        fit(
            network(activation_inside="tanh"),
            with_nan(tiny_task, "validation"),
            Fit(epochs=1, batch_size=96),
            seed=0,
        )


def test_weights_that_are_not_finite_under_a_finite_loss_stop_too(tiny_task):
    with pytest.raises(UserError, match=r"dense1/kernel:0 became nan in epoch 1 at its end"):
        fit(network(), with_nan(tiny_task, "train"), Fit(epochs=2, batch_size=96), seed=0)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (lambda: network(classes=4), r"one output a class, 3 for tiny, got shape \(4,\)"),
        (lambda: network(activation=None), "must be probabilities, got a sum of"),
        (
            lambda: tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(5,))]),
            r"does not take the samples of tiny, shape \(8, 8, 1\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(tiny_task, model, complaint):
    with pytest.raises(UserError, match=complaint):
        fit(model(), tiny_task, Fit(epochs=1, batch_size=64), seed=0)


def test_a_model_with_two_outputs_is_refused(tiny_task):
    inner = network()
    model = tf_keras.Model(inner.input, [inner.output, inner.output])
    with pytest.raises(UserError, match="got several outputs"):
        fit(model, tiny_task, Fit(epochs=1, batch_size=64), seed=0)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"epochs": 0}, r">= 1.*\$\.epochs"),
        ({"epochs": 1, "batch_size": 0}, r">= 1.*\$\.batch_size"),
        (
            {"epochs": 1, "optimizer": {"kind": "adam", "learning_rate": 0.0}},
            r"> 0.*\$\.optimizer\.learning_rate",
        ),
        ({"epochs": 1, "optimizer": {"kind": "lion"}}, r"lion.*\$\.optimizer"),
        (
            {"epochs": 1, "optimizer": {"kind": "sgd", "momentum": 0.0, "nesterov": True}},
            r"nesterov needs a momentum above 0.*\$\.optimizer",
        ),
        (
            {"epochs": 2, "schedule": {"kind": "cosine", "warmup_epochs": 2.0}},
            r"schedule\.warmup_epochs must be below epochs \(2\), got 2",
        ),
        (
            {"epochs": 2, "early_stopping": {"patience": 0}},
            r">= 1.*\$\.early_stopping\.patience",
        ),
        ({"epochs": 2, "learning_rate": 1.0}, "unknown field `learning_rate`"),
    ],
)
def test_a_mistake_in_the_settings_is_named_with_its_place(fields, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        decode(**fields)


def test_a_metric_that_the_task_has_not_is_refused_where_it_is_watched(tiny_task):
    stopping = Fit(
        epochs=1, batch_size=64, early_stopping=EarlyStopping(patience=1, metric="val_auc")
    )
    with pytest.raises(
        UserError, match=r"early_stopping.metric: there is no 'val_auc' here; there"
    ):
        fit(network(), tiny_task, stopping, seed=0)
    slowing = Fit(epochs=1, batch_size=64, schedule=Plateau(metric="r2"))
    with pytest.raises(UserError, match=r"schedule.metric: there is no 'r2' here; there are loss,"):
        fit(network(), tiny_task, slowing, seed=0)
    task = without_validation(tiny_task)
    with pytest.raises(UserError, match="schedule: val_loss needs validation samples"):
        fit(network(), task, Fit(epochs=1, batch_size=64, schedule=Plateau()), seed=0)


def test_full_batch_descent_makes_one_step_an_epoch_and_takes_a_batch_larger_than_the_data(
    tiny_task,
):
    config = Fit(epochs=2, batch_size=1000, optimizer=GradientDescent())
    model = network()
    fit(model, tiny_task, config, seed=0)
    assert int(model.optimizer.iterations) == 2


def test_the_loop_asks_for_batches_and_never_for_all_samples(tiny_task):
    class Streamed:
        """Samples that are read when asked for, as a folder of images is."""

        def __init__(self, x):
            self._x = x
            self.shape, self.dtype, self.asked = x.shape, x.dtype, []

        def __len__(self):
            return len(self._x)

        def __getitem__(self, indices):
            part = self._x[indices]
            self.asked.append(len(part))
            return part

        def __array__(self, *_args, **_kwargs):
            raise AssertionError("all samples at once")

    streamed = {
        name: dataclasses.replace(getattr(tiny_task, name), x=Streamed(getattr(tiny_task, name).x))
        for name in ("train", "validation")
    }
    task = dataclasses.replace(tiny_task, **streamed)
    model, again = network(dropout=0.3), network(dropout=0.3)
    fit(model, task, Fit(epochs=2, batch_size=20), seed=0)
    fit(again, tiny_task, Fit(epochs=2, batch_size=20), seed=0)
    assert max(task.train.x.asked + task.validation.x.asked) == 20
    assert all(map(np.array_equal, model.get_weights(), again.get_weights()))


def test_a_sample_that_cannot_be_read_is_said_as_the_source_says_it(tiny_task):
    class Damaged:
        shape, dtype = tiny_task.train.x.shape, tiny_task.train.x.dtype

        def __len__(self):
            return len(tiny_task.train)

        def __getitem__(self, indices):
            if not isinstance(indices, slice) and len(indices) > 1:
                raise UserError("cat.png: this image is damaged")
            return tiny_task.train.x[indices]

    train = dataclasses.replace(tiny_task.train, x=Damaged())
    with pytest.raises(UserError, match=r"^cat.png: this image is damaged$"):
        fit(network(), dataclasses.replace(tiny_task, train=train), Fit(epochs=1), seed=0)


def test_each_epoch_is_a_line_of_the_table_and_a_step_of_tensorboards_logs(tiny_task, tmp_path):
    import tensorflow as tf

    files = TrainingFiles(csv=tmp_path / "epochs.csv", tensorboard=tmp_path / "logs")
    config = Fit(epochs=2, batch_size=64, schedule=Cosine())
    history = fit(network(), tiny_task, config, seed=0, files=files)
    header, first, second = (tmp_path / "epochs.csv").read_text().splitlines()
    assert header == "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds"
    assert first.startswith(f"1,{history.epochs[0]['loss']},")
    assert second.startswith(f"2,{history.epochs[1]['loss']},")
    (log,) = (tmp_path / "logs").iterdir()
    records = tf.data.TFRecordDataset(str(log)).as_numpy_iterator()
    events = [tf.compat.v1.Event.FromString(record) for record in records]
    written = {
        (value.tag, event.step): float(tf.make_ndarray(value.tensor))
        for event in events
        for value in event.summary.value
    }
    assert written["validation/loss", 2] == pytest.approx(history.epochs[1]["val_loss"])
    assert {step for _, step in written} == {1, 2}
    assert written["training/learning_rate", 1] > written["training/learning_rate", 2]


def test_a_one_cycle_moves_the_momentum_and_leaves_the_optimizer_as_it_was(tiny_task, tmp_path):
    schedule = OneCycle(momentum=(0.5, 0.9))
    model = network()
    fit(model, tiny_task, Fit(epochs=2, batch_size=64, optimizer=Sgd(), schedule=schedule), seed=0)
    assert model.optimizer.momentum == 0.9
    model.save(tmp_path / "model.keras")
    still = network()
    fit(
        still, tiny_task, Fit(epochs=2, batch_size=64, optimizer=Sgd(), schedule=OneCycle()), seed=0
    )
    assert not np.allclose(model.get_weights()[0], still.get_weights()[0])


@pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(this_environment().isa),
    reason="this processor does not compute in bfloat16",
)
def test_bfloat16_computes_less_exactly_and_leaves_weights_float32(tiny_task):
    def weights(precision):
        model = network(units=32)
        fit(model, tiny_task, Fit(epochs=1, batch_size=32, precision=precision), seed=0)
        return model.get_weights()

    exact, rough, again = weights("float32"), weights("bfloat16"), weights("float32")
    assert all(weight.dtype == np.float32 for weight in rough)
    assert not all(map(np.array_equal, exact, rough))
    assert all(np.allclose(a, b, atol=0.02) for a, b in zip(exact, rough, strict=True))
    assert all(map(np.array_equal, exact, again))  # the option ends with its training


def test_bfloat16_on_a_processor_without_it_is_refused(tiny_task, monkeypatch):
    bare = msgspec.structs.replace(this_environment(), isa=("avx2",))
    monkeypatch.setattr("compress.train.fit.this_environment", lambda: bare)
    with pytest.raises(UserError, match="bfloat16 needs a processor with AVX512-BF16 or AMX"):
        fit(network(), tiny_task, Fit(epochs=1, precision="bfloat16"), seed=0)


@pytest.mark.slow
def test_xla_trains_to_nearly_the_same_weights(tiny_task):
    def weights(xla):
        model = network()  # without dropout: XLA draws other numbers
        # Adam would turn the last bit of a gradient near 0 into a whole step.
        fit(model, tiny_task, Fit(epochs=1, batch_size=64, optimizer=Sgd(), xla=xla), seed=0)
        return model.get_weights()

    pairs = zip(weights(xla=True), weights(xla=False), strict=True)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_settings_survive_the_way_through_json():
    config = Fit(
        epochs=3,
        optimizer=AdamW(weight_decay=0.1),
        schedule=Cosine(warmup_epochs=1),
        early_stopping=EarlyStopping(metric="val_accuracy", patience=2),
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=Fit) == config
