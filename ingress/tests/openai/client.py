"""Talks to a server of Turnflow with OpenAI's own client, as a program would, and checks what it hears."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
question = "How long does standard delivery take?"
messages = [{"role": "user", "content": question}]

# Whole.
answer = client.chat.completions.create(model="turnflow", messages=messages, temperature=0.2, user="u")
text = answer.choices[0].message.content
assert "3 to 5 business days" in text, answer
assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.tool_calls is None, answer
assert answer.usage.total_tokens > 0, answer
assert answer.turnflow["cache"]["level"] == "miss", answer

# With the headers, from the cache.
raw = client.chat.completions.with_raw_response.create(model="turnflow", messages=messages)
assert raw.headers["x-turnflow-cache"] == "exact" and int(raw.headers["age"]) >= 0, raw.headers
assert raw.parse().choices[0].message.content == text

# As a stream, from the cache and anew, with and without its usage.
for headers, level in [({}, "exact"), ({"Cache-Control": "no-cache"}, "bypass")]:
    stream = client.chat.completions.create(
        model="turnflow", messages=messages, stream=True, stream_options={"include_usage": True}, extra_headers=headers
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant", chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text, chunks
    last, usage = chunks[-2:]
    assert last.choices[0].finish_reason == "stop" and last.turnflow["cache"]["level"] == level, chunks
    assert usage.choices == [] and usage.usage is not None, chunks
with client.chat.completions.stream(model="turnflow", messages=messages) as stream:
    assert stream.get_final_completion().choices[0].message.content == text

# A conversation that the server knows, and one that the client tells.
body = {"conversation": "c1", "channel": "web"}
shipping = {"role": "user", "content": "Do you ship to Canada?"}
leaning = {"role": "user", "content": "And how much is it?"}
shipped = client.chat.completions.create(model="turnflow", messages=[shipping], extra_body=body)
known = client.chat.completions.create(model="turnflow", messages=[leaning], extra_body=body)
said = {"role": "assistant", "content": shipped.choices[0].message.content}
told = client.chat.completions.create(model="turnflow", messages=[shipping, said, leaning])
for reply in (known, told):
    assert "$18" in reply.choices[0].message.content, reply
    assert reply.turnflow["cache"]["level"] == "bypass", reply

# What is refused.
try:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    client.chat.completions.create(model="turnflow", messages=messages, tools=tools)
    raise SystemExit("tools were not refused")
except openai.BadRequestError as error:
    assert error.param == "tools" and error.type == "invalid_request_error", error
# A client that says another model's name needs no other change than its base URL.
assert client.chat.completions.create(model="gpt-4o", messages=messages).choices[0].message.content == text

# Models and embeddings; the client asks for base64 by itself.
names = [model.id for model in client.models.list()]
assert names[0] == "turnflow", names
assert client.models.retrieve("turnflow").owned_by == "turnflow"
one, other = client.embeddings.create(model=names[-1], input=[question, "Do you ship to Canada?"]).data
assert len(one.embedding) == 384 and one.embedding != other.embedding
floats = client.embeddings.create(model=names[-1], input=question, encoding_format="float").data[0].embedding
assert all(abs(a - b) < 1e-5 for a, b in zip(one.embedding, floats))
print("ok", openai.__version__)
