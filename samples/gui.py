"""A window that a text streams into, and stays usable meanwhile: python samples/gui.py BUNDLE PROMPT [--close]."""

import queue
import sys
import threading
import tkinter

import recycle_onnx

root = tkinter.Tk()
text = tkinter.Text(root, wrap="word")
text.tag_configure("recycled", foreground="green")
text.pack(fill="both", expand=True)
generation = recycle_onnx.load(sys.argv[1]).stream(sys.argv[2], max_new_tokens=120)
tokens = queue.SimpleQueue()


def generate() -> None:
    """Run the model; only the main thread may touch the window."""
    for token in generation:
        tokens.put(token)
    tokens.put(None)


def show() -> None:
    """Move to the window what has come, fifty times a second."""
    while not tokens.empty():
        if (token := tokens.get()) is not None:
            text.insert("end", token.text, "recycled" if token.recycled else "")
        elif "--close" in sys.argv:
            print(text.get("1.0", "end-1c"))
            root.destroy()
            return
    root.after(20, show)


worker = threading.Thread(target=generate)
worker.start()
root.after(0, show)
root.mainloop()
generation.cancel()  # the window was closed
worker.join()
