"""Writes the text that quantization is calibrated with, `pytest_llamaperf/checkpoints/calibration.txt`.

The embedded model answers the requests below, with seeded sampling; its answers are free to ship (SmolLM2 is under
Apache 2.0) and there is no data set to download. What they say does not matter: they are many kinds of text, and
activations take on them the sizes they take at work. The file is part of what identifies a quantized checkpoint:
after a change of it all are made anew, and accuracy measured before is of another checkpoint.

    python benchmarks/calibration/write_calibration.py

needs the extra `torch` and takes some minutes. Another version of PyTorch, or another CPU, may sample other words.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_llamaperf.catalog import model_named, recipe_named
from pytest_llamaperf.checkpoints import CheckpointStore
from pytest_llamaperf.checkpoints.calibration import TEXT

SEED = 135
LONGEST = 272  # tokens of an answer
BATCH = 16
UNFIT = r"@|://|www\.|Fax:|\d{7}|\d-\d{3}-\d{4}|\ufffd"

HEADER = (
    "The passages below were written by SmolLM2-135M-Instruct, a small language model under the Apache 2.0 license, for "
    "benchmarks/calibration/write_calibration.py of pytest-llamaperf. They are true only by accident."
)

REQUESTS = (
    # prose
    "Tell a short story about a lighthouse keeper who finds a letter in a bottle.",
    "Describe a market square in a small town on a rainy morning.",
    "Write the opening page of a detective novel set in Lisbon.",
    "Tell the history of the bicycle in three paragraphs.",
    "Explain how a steam engine works to a curious child.",
    "Write a newspaper report about a storm that closed a harbor.",
    "Describe what happens in a beehive through the seasons.",
    "Write an obituary for a retired teacher who loved maps.",
    "Explain why leaves change color in autumn.",
    "Write a review of a restaurant that serves only soup.",
    # dialogue
    "Write a dialogue between a customer and a clerk about a broken umbrella.",
    "Write an interview with an astronaut who has just come home.",
    "Write a telephone call between two sisters planning a surprise party.",
    "Write a scene of a play in which two chess players argue.",
    "Write a chat between a student and a librarian looking for a book on volcanoes.",
    # code
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and an example.",
    "Write a Python class for a bank account with deposit and withdraw methods.",
    "Write a SQL query that lists the ten customers with the largest orders, and explain it.",
    "Write a JavaScript function that reverses a string, and explain each line.",
    "Write a C program that reads two numbers and prints their sum.",
    "Write an HTML page with a heading, a list and a table.",
    "Write a shell script that renames all .txt files in a folder.",
    "Explain the difference between a list and a tuple in Python with code examples.",
    "Write a JSON document that describes a library with three books.",
    # lists
    "List the steps for planting a tomato garden.",
    "Give me a packing list for a week of hiking in the mountains.",
    "List ten facts about the planet Jupiter.",
    "Give a recipe for apple pie with ingredients and steps.",
    "List the advantages and disadvantages of electric cars.",
    "Make a weekly schedule for learning to play the guitar.",
    # mathematics and numbers
    "Solve the equation 3x + 7 = 22 step by step.",
    "Explain how to compute the area of a circle, with an example.",
    "A train travels 240 km in 3 hours. Explain how to find its average speed.",
    "Explain what a prime number is and list the first fifteen of them.",
    "Explain the theorem of Pythagoras with a worked example.",
    "What is 15 percent of 240? Show the calculation.",
    "Explain probability with two dice.",
    # letters
    "Write a letter to a landlord about a leaking roof.",
    "Write an e-mail to a colleague that moves a meeting to Thursday.",
    "Write a letter of application for a job as a gardener.",
    "Write a short letter that thanks a neighbor for looking after a cat.",
    "Write a complaint to a railway company about a late train.",
    # knowledge and advice
    "Summarize how the water cycle works.",
    "Explain what inflation is and what causes it.",
    "What should I do when I cannot sleep at night?",
    "Explain the difference between weather and climate.",
    "Write a poem about a river in winter.",
    "Translate these words into French and Spanish: house, water, bread, friend, night.",
)


def answers(folder: Path) -> list[str]:
    """One for each request, in order."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in REQUESTS
    ]
    written: list[str] = []
    for start in range(0, len(chats), BATCH):
        asked = tokenizer(chats[start : start + BATCH], return_tensors="pt", padding=True)
        with torch.inference_mode():
            tokens = model.generate(
                **asked, max_new_tokens=LONGEST, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1
            )
        fresh = tokens[:, asked["input_ids"].shape[1] :]
        written += [presentable(text) for text in tokenizer.batch_decode(fresh, skip_special_tokens=True)]
        print(f"{len(written)} of {len(chats)}", flush=True)
    return written


def presentable(text: str) -> str:
    """Without lines that hold an address or a telephone number, which are invented and may be somebody's all the same,
    or half a character.
    """
    kept = [line.rstrip() for line in text.strip().splitlines() if not re.search(UNFIT, line)]
    return "\n".join(kept).strip()


def main() -> None:
    checkpoint = CheckpointStore().get(model_named("smollm2-135m"), recipe_named("bf16"))
    TEXT.write_text("\n\n".join([HEADER, *answers(checkpoint.path)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
