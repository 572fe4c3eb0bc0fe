"""lm_eval's requests answered from packed weights: against plain transformers in float64, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Pruning
from sparsehpc.models.packed import PackedModel
from sparsehpc.models.packed_writer import write_plain
from sparsehpc.pretrained import compress

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (make lm-eval): no request was made"
)
# Warnings of lm_eval and of what it imports are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

#: As many tokens as the tokenizer has, so that all that is generated can be read.
CONFIGS = {name: FAMILIES[name] | {"vocab_size": 259} for name in ("llama", "opt", "gpt_neox")}
MAGNITUDE = Pruning(method="magnitude", pattern="unstructured", sparsity="0.5")
PAIRS = [("a cat", " sat"), ("", "no context"), ("spaces stay with  ", "what follows"), ("one", "x")]
LONG = "every token of a text that is longer than the model reads is predicted once " * 3
PROMPTS = ["short", "a longer prompt"]
#: Logits are of order 1 to 10 after three layers in float32, and each token adds two roundings of that size.
TOLERANCE_A_TOKEN = 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def packed(request, tiny_snapshot, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "packed"
    compress(tiny_snapshot(CONFIGS[request.param]), MAGNITUDE, "bitmap", folder)
    return folder


class Reference:
    """The same weights with zeros in place, in float64."""

    def __init__(self, packed, tmp_path):
        write_plain(tmp_path / "plain", PackedModel(packed), lambda stage, done, total: None)
        self.model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float64).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(packed)

    def ids(self, text, **options):
        return self.tokenizer.encode(text, **options)

    @torch.inference_mode()
    def score(self, context, continuation):
        """Log-likelihood of a continuation, and whether it is what greedy decoding gives."""
        logits = self.model(torch.tensor([[*context, *continuation][:-1]])).logits[0, len(context) - 1 :]
        chosen = torch.log_softmax(logits, -1)[range(len(continuation)), continuation]
        return float(chosen.sum()), logits.argmax(-1).tolist() == continuation

    def continued(self, prompt, tokens):
        """Text of a greedy continuation."""
        ids = torch.tensor([self.ids(prompt)])
        made = self.model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture
def reference(packed, tmp_path):
    return Reference(packed, tmp_path)


def ask(model, kind, arguments):
    from lm_eval.api.instance import Instance

    return getattr(model, kind)([Instance(kind, {}, tuple(words), 0) for words in arguments])


def open_packed(folder, **options):
    from sparsehpc.lm_eval import PackedLM

    return PackedLM(str(folder), **options)


@needs_lm_eval
@pytest.mark.parametrize("batch_size", [1, 3])
def test_continuations_are_scored_as_in_float64(packed, reference, batch_size):
    answers = ask(open_packed(packed, batch_size=batch_size), "loglikelihood", PAIRS)
    for (context, continuation), (value, greedy) in zip(PAIRS, answers, strict=True):
        # Spaces between the two belong to the continuation, as in lm_eval's own models.
        start = reference.ids(context.rstrip()) if context else [reference.tokenizer.bos_token_id]
        ids = reference.ids(context + continuation)[len(start) :] if context else reference.ids(continuation)
        if not context and ids[0] == start[0]:
            ids = ids[1:]
        want, want_greedy = reference.score(start, ids)
        assert value == pytest.approx(want, abs=TOLERANCE_A_TOKEN * len(ids))
        assert greedy == want_greedy


@needs_lm_eval
def test_the_greedy_continuation_is_known_as_such(packed, reference):
    model = open_packed(packed)
    context = reference.ids("a cat")
    best = int(reference.model(torch.tensor([context])).logits[0, -1].argmax())
    answers = model._loglikelihood_tokens([(("", ""), context, [best]), (("", ""), context, [(best + 1) % 259])])
    assert [greedy for _, greedy in answers] == [True, False]


@needs_lm_eval
def test_a_text_longer_than_the_model_reads_is_scored_in_windows(packed, reference):
    model = open_packed(packed)
    prefix, ids = reference.tokenizer.bos_token_id, reference.ids(LONG)
    room = model.max_length
    assert room == 128
    assert room < len(ids) < 2 * room
    # All that fits behind the prefix, then the rest with as much context as there is room for.
    first, _ = reference.score([prefix], ids[:room])
    rest = len(ids) - room
    second, _ = reference.score(ids[-room - 1 : -rest], ids[-rest:])
    (value,) = ask(model, "loglikelihood_rolling", [(LONG,)])
    assert value == pytest.approx(first + second, abs=TOLERANCE_A_TOKEN * len(ids))


@needs_lm_eval
def test_generation_is_greedy_and_stops(packed, reference):
    want = [reference.continued(prompt, 12) for prompt in PROMPTS]
    model = open_packed(packed, batch_size=2)
    asked = [(prompt, {"until": [], "max_gen_toks": 12}) for prompt in PROMPTS]
    assert ask(model, "generate_until", asked) == want
    stop = want[1][len(want[1]) // 2]
    (stopped,) = ask(model, "generate_until", [(PROMPTS[1], {"until": [stop], "max_gen_toks": 12})])
    assert stopped == want[1].partition(stop)[0]


def write_task(folder):
    """A task of three questions with two answers each; the right one by position of the label."""
    questions = [{"text": f"{word} is", "label": n % 2} for n, word in enumerate(("this", "that", "it"))]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["good", "bad"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    return questions, task


@needs_lm_eval
def test_a_local_task_is_evaluated_by_name(packed, reference, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval

    from sparsehpc import lm_eval as registered

    assert registered.PackedLM
    questions, task = write_task(tmp_path)
    results = lm_eval.simple_evaluate(
        "sparsehpc", {"pretrained": str(packed)}, tasks=[task], bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )  # fmt: skip
    right = 0
    for question in questions:
        context = reference.ids(question["text"])
        scores = [
            reference.score(context, reference.ids(f"{question['text']} {choice}")[len(context) :])[0]
            for choice in ("good", "bad")
        ]
        right += scores.index(max(scores)) == question["label"]
    assert results["results"]["tiny"]["acc,none"] == pytest.approx(right / 3)
    assert results["config"]["sparsehpc"]["recipe"]["sparsity"] == "0.5"
    assert results["config"]["sparsehpc"]["formats"] == {"bitmap": len(PackedModel(packed).formats)}


@needs_lm_eval
def test_what_is_no_packed_model_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="holds no packed model"):
        open_packed(tmp_path)


@needs_lm_eval
@pytest.mark.slow
def test_command_line(tiny_snapshot, tmp_path):
    compress(tiny_snapshot(CONFIGS["llama"]), MAGNITUDE, "bitmap", tmp_path / "packed")
    _, task = write_task(tmp_path)
    (tmp_path / "tasks").mkdir()
    # JSON is YAML.
    (tmp_path / "tasks" / "tiny.yaml").write_text(json.dumps(task))

    words = ["lm_eval", "run", "--model", "sparsehpc", "--model_args", f"pretrained={tmp_path / 'packed'}"]
    words += ["--tasks", "tiny", "--include_path", str(tmp_path / "tasks")]
    words += ["--output_path", str(tmp_path / "results.json")]
    # Its own tasks are thousands of files that are read for minutes; its table needs further packages.
    code = (
        "import functools, runpy, sys, lm_eval.tasks, lm_eval.utils\n"
        "manager = lm_eval.tasks.TaskManager\n"
        "manager.__init__ = functools.partialmethod(manager.__init__, include_defaults=False)\n"
        "lm_eval.utils.make_table = lambda *_: ''\n"
        f"sys.argv = {words!r}\n"
        "runpy.run_module('sparsehpc.lm_eval', run_name='__main__')\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (written,) = tmp_path.glob("results*.json")
    assert 0 <= json.loads(written.read_text())["results"]["tiny"]["acc,none"] <= 1


@needs_lm_eval
def test_command_line_shows_a_mistake_without_a_traceback(tmp_path, monkeypatch):
    import lm_eval.__main__

    from sparsehpc.lm_eval import main

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: open_packed(tmp_path))
    with pytest.raises(SystemExit, match=r"error: .* holds no packed model"):
        main()


def test_without_lm_eval_the_error_says_how_to_get_it():
    code = "import sys; sys.modules['lm_eval'] = None; import sparsehpc.lm_eval"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "pip install 'sparsehpc[lm-eval]'" in answer.stderr.splitlines()[-1]
