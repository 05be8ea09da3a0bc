/* The Data tab: a folder is put into a zip in the browser, so that its subfolders, which are the classes, come along. */
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const PICTURE = /\.(png|jpe?g|webp|bmp|gif|tiff?)$/i;
  const encoder = new TextEncoder();

  const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n >>> 0;
  });

  /** The CRC-32 of bytes, as zip archives carry it. */
  atonce.dataCrc = (bytes) => {
    let crc = 0xffffffff;
    for (let i = 0; i < bytes.length; i++) crc = TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
    return (crc ^ 0xffffffff) >>> 0;
  };

  const record = (size, fields) => {
    const view = new DataView(new ArrayBuffer(size));
    let at = 0;
    for (const [bytes, value] of fields) {
      if (bytes === 2) view.setUint16(at, value, true);
      else view.setUint32(at, value, true);
      at += bytes;
    }
    return new Uint8Array(view.buffer);
  };

  /** Files with their names as the parts of a stored zip archive. */
  atonce.dataZip = async (files, tell) => {
    const parts = [], central = [];
    let offset = 0;
    for (const [number, { name, file }] of files.entries()) {
      const bytes = new Uint8Array(await file.arrayBuffer());
      const path = encoder.encode(name);
      const common = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, atonce.dataCrc(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0]];
      parts.push(record(30, [[4, 0x04034b50], ...common]), path, file);
      central.push(record(46, [[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), path);
      offset += 30 + path.length + bytes.length;
      if (tell && number % 50 === 49) tell(number + 1);
    }
    const size = central.reduce((sum, part) => sum + part.length, 0);
    const count = Math.min(files.length, 0xffff);
    return [...parts, ...central, record(22, [[4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]])];
  };

  /** The pictures of a chosen folder, named from below it; hidden files and other kinds stay away. */
  atonce.dataChosen = (files) =>
    [...files]
      .map((file) => ({ file, name: (file.webkitRelativePath || file.name).split("/").slice(file.webkitRelativePath ? 1 : 0).join("/") }))
      .filter(({ name }) => !name.split("/").some((part) => part.startsWith(".")) && (PICTURE.test(name) || name === "dataset.json"))
      .sort((a, b) => (a.name < b.name ? -1 : 1));

  /** The button "Choose a folder". */
  atonce.dataFolder = (element) => {
    const input = element.querySelector("input[type=file]");
    const button = element.querySelector("button");
    const says = element.querySelector("[role=status]");
    const limit = Number(element.querySelector("[data-limit]").dataset.limit);
    button.addEventListener("click", () => input.click());
    input.addEventListener("change", async () => {
      const name = (input.files[0]?.webkitRelativePath || "folder/").split("/")[0] || "folder";
      const files = atonce.dataChosen(input.files);
      const size = files.reduce((sum, { file }) => sum + file.size, 0);
      const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
      input.value = "";
      if (!files.length) {
        says.textContent = `${name} holds no pictures (png, jpg, webp, bmp, gif, tif): choose another folder.`;
        return;
      }
      if (size > limit || files.length > 65000) {
        says.textContent = `${name} has ${files.length} pictures of ${mib(size)}; at most ${mib(limit)} and 65,000 can be uploaded at once: choose a smaller folder.`;
        return;
      }
      button.disabled = true;
      try {
        const tell = (done) => (says.textContent = `Reading ${name}: ${done} of ${files.length} pictures`);
        tell(0);
        const zip = new File(await atonce.dataZip(files, tell), `${name.replace(/[^\w.-]+/g, "_")}.zip`, { type: "application/zip" });
        const target = document.querySelector("#data-upload input[type=file]");
        if (!target) throw new Error("the upload is busy");
        const carrier = new DataTransfer();
        carrier.items.add(zip);
        target.files = carrier.files;
        target.dispatchEvent(new Event("change", { bubbles: true }));
        says.textContent = `Uploading ${name}: ${files.length} pictures, ${mib(size)}`;
      } catch (error) {
        says.textContent = `${name} could not be read (${error.message}): choose it again.`;
      } finally {
        button.disabled = false;
      }
    });
  };
})();
