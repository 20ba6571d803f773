"""Ask a server by `openai` and by LangChain's `ChatOpenAI`: sync, async, streamed. For
`scripts/check-clients`, in whose environment it runs."""

import asyncio
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

url, key = sys.argv[1], "check-clients"
talk = [{"role": "user", "content": "Say hello."}]
given = {"model": "served", "messages": talk, "max_tokens": 12, "temperature": 0}

client = OpenAI(base_url=url, api_key=key)
whole = client.chat.completions.create(**given).choices[0].message.content
pieces = client.chat.completions.create(**given, stream=True)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole, whole


async def asked() -> str:
    """Ask as a task."""
    answer = await AsyncOpenAI(base_url=url, api_key=key).chat.completions.create(**given)
    return answer.choices[0].message.content or ""


assert asyncio.run(asked()) == whole
print("openai:", repr(whole))

chat = ChatOpenAI(base_url=url, api_key=key, model="served", max_tokens=12, temperature=0)
messages = [SystemMessage("You are brief."), HumanMessage("Say hello.")]
answer = chat.invoke(messages)
assert (answer.usage_metadata or {})["output_tokens"] > 0
streamed = "".join(str(chunk.content) for chunk in chat.stream(messages))
assert streamed == answer.content, (streamed, answer.content)
assert asyncio.run(chat.ainvoke(messages)).content == answer.content
assert [one.content for one in chat.batch([messages] * 3)] == [answer.content] * 3
print("langchain:", repr(answer.content))
