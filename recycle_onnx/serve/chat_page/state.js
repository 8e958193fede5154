"use strict";
const $ = (id) => document.getElementById(id);
// The open chat, files that go with its next message, results of tools that are not sent yet, the answer in progress.
const state = { model: null, chat: newChat(), files: [], drafts: {}, running: null, asked: 0 };
