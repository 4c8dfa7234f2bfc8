"""The official Python client against a running server: `python3 openai_client.py http://127.0.0.1:8000`."""

import json
import sys

import openai
from openai import OpenAI

QUESTION = "Maria has 14 pencils. She buys 3 boxes with 8 pencils in each. How many pencils does Maria have now?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
}


def chats(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="default", messages=MESSAGES, temperature=0)
    text = whole.choices[0].message.content
    assert text.endswith("#### 38"), text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model="default", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    several = client.chat.completions.create(
        model="default", messages=MESSAGES, n=3, temperature=1, seed=1, max_tokens=20, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len(several.choices[0].logprobs.content[0].top_logprobs) == 2


def completions(client: OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="Tom has 3 apples and", max_tokens=8, logprobs=1, echo=True)
    choice = answer.choices[0]
    assert choice.text == "".join(choice.logprobs.tokens) and choice.text.startswith("Tom has")
    stopped = client.completions.create(model="default", prompt=["A farm has", "Tom has"], max_tokens=40, stop=["."])
    assert len(stopped.choices) == 2 and all("." not in choice.text for choice in stopped.choices)


def forms(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=MESSAGES, response_format=ANSWER_FORMAT, max_tokens=60
    )
    assert 0 <= json.loads(answer.choices[0].message.content)["answer"] <= 99
    for choice in ["required", {"type": "function", "function": {"name": "add"}}]:
        answer = client.chat.completions.create(
            model="default", messages=MESSAGES, tools=[TOOL], tool_choice=choice, max_tokens=200, seed=1,
            parallel_tool_calls=False,
        )
        call = answer.choices[0].message.tool_calls[0]
        assert call.function.name == "add" and set(json.loads(call.function.arguments)) == {"a", "b"}


def errors(client: OpenAI) -> None:
    cases = [
        (openai.BadRequestError, {"model": "default", "messages": MESSAGES, "temperature": -1}, "temperature"),
        (openai.NotFoundError, {"model": "gpt-4", "messages": MESSAGES}, "model"),
    ]
    for kind, request, param in cases:
        try:
            client.chat.completions.create(**request)
        except kind as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"{request} was answered")


def main() -> None:
    url = sys.argv[1].rstrip("/")
    client = OpenAI(base_url=f"{url}/v1", api_key=sys.argv[2] if len(sys.argv) > 2 else "none")
    names = [model.id for model in client.models.list()]
    assert names and client.models.retrieve(names[0]).id == names[0]
    chats(client)
    completions(client)
    forms(client)
    errors(client)
    print(f"the openai client {openai.__version__} works with {names[0]}")


if __name__ == "__main__":
    main()
