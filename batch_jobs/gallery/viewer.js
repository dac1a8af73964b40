// A viewer of GLB files in WebGL 2: triangles with normals, texture coordinates, vertex colours and a base colour picture.
"use strict";

const COMPONENTS = { 5121: Uint8Array, 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
const WIDTHS = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };

// Parts {position, normal, uv, color, index, count, matrix, factor, picture} of the scene of a GLB; arrays are copies.
function readGlb(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 20 || view.getUint32(0, true) !== 0x46546c67) throw new Error("this is not a GLB file");
  const jsonLength = view.getUint32(12, true);
  const tree = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, jsonLength)));
  const binary = 20 + jsonLength + 8; // the bytes after the header of the second chunk

  function bytesOf(number) {
    const found = tree.bufferViews[number];
    return new Uint8Array(buffer, binary + (found.byteOffset || 0), found.byteLength);
  }
  function values(number) {
    if (number === undefined) return null;
    const accessor = tree.accessors[number], kind = COMPONENTS[accessor.componentType], width = WIDTHS[accessor.type];
    const found = tree.bufferViews[accessor.bufferView], size = kind.BYTES_PER_ELEMENT * width;
    const stride = found.byteStride || size, data = bytesOf(accessor.bufferView), packed = new Uint8Array(size * accessor.count);
    for (let i = 0; i < accessor.count; i++) {
      const at = (accessor.byteOffset || 0) + i * stride;
      packed.set(data.subarray(at, at + size), i * size);
    }
    const raw = new kind(packed.buffer);
    if (!accessor.normalized || kind === Float32Array) return { data: raw, width };
    const most = 2 ** (8 * kind.BYTES_PER_ELEMENT) - 1;
    return { data: Float32Array.from(raw, (value) => value / most), width };
  }
  function pictureOf(material) {
    const info = material.pbrMetallicRoughness && material.pbrMetallicRoughness.baseColorTexture;
    if (!info) return null;
    const image = tree.images[tree.textures[info.index].source];
    return new Blob([bytesOf(image.bufferView)], { type: image.mimeType });
  }

  const parts = [];
  function visit(number, parent) {
    const node = tree.nodes[number], matrix = multiply(parent, matrixOf(node));
    for (const primitive of node.mesh === undefined ? [] : tree.meshes[node.mesh].primitives) {
      const given = primitive.attributes, position = values(given.POSITION), index = values(primitive.indices);
      const material = primitive.material === undefined ? {} : tree.materials[primitive.material];
      const factor = (material.pbrMetallicRoughness || {}).baseColorFactor || [1, 1, 1, 1];
      parts.push({
        position, normal: values(given.NORMAL), uv: values(given.TEXCOORD_0), color: values(given.COLOR_0), index,
        count: index ? index.data.length : position.data.length / 3, matrix, factor, picture: pictureOf(material),
      });
    }
    for (const child of node.children || []) visit(child, matrix);
  }
  for (const root of tree.scenes[tree.scene || 0].nodes) visit(root, IDENTITY);
  return parts;
}

// ---- matrices, in columns as in OpenGL ----

const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];

function multiply(a, b) {
  return IDENTITY.map((_, i) => {
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += a[4 * k + (i % 4)] * b[4 * Math.floor(i / 4) + k];
    return sum;
  });
}

function matrixOf(node) {
  if (node.matrix) return node.matrix;
  const [x, y, z, w] = node.rotation || [0, 0, 0, 1], s = node.scale || [1, 1, 1], t = node.translation || [0, 0, 0];
  return [
    (1 - 2 * (y * y + z * z)) * s[0], 2 * (x * y + w * z) * s[0], 2 * (x * z - w * y) * s[0], 0,
    2 * (x * y - w * z) * s[1], (1 - 2 * (x * x + z * z)) * s[1], 2 * (y * z + w * x) * s[1], 0,
    2 * (x * z + w * y) * s[2], 2 * (y * z - w * x) * s[2], (1 - 2 * (x * x + y * y)) * s[2], 0,
    t[0], t[1], t[2], 1,
  ];
}

// From the world to the eye: the camera looks at `center` from an azimuth (0 is +Z) and an elevation, in degrees.
function lookAt(center, azimuth, elevation, distance) {
  const a = azimuth * Math.PI / 180, e = elevation * Math.PI / 180;
  const back = [Math.cos(e) * Math.sin(a), Math.sin(e), Math.cos(e) * Math.cos(a)], right = [Math.cos(a), 0, -Math.sin(a)];
  const up = [-Math.sin(e) * Math.sin(a), Math.cos(e), -Math.sin(e) * Math.cos(a)];
  const along = (axis) => -(axis[0] * center[0] + axis[1] * center[1] + axis[2] * center[2]);
  return [
    right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
    along(right), along(up), along(back) - distance, 1,
  ];
}

function perspective(fovy, aspect, near, far) {
  const f = 1 / Math.tan(fovy * Math.PI / 360);
  return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0];
}

// ---- drawing ----

const VERTEX = `#version 300 es
in vec3 position; in vec3 normal; in vec2 uv; in vec4 color;
uniform mat4 model, eye, lens; out vec3 at; out vec3 turned; out vec2 place; out vec4 tint;
void main() {
  vec4 seen = eye * model * vec4(position, 1.0);
  at = seen.xyz; turned = mat3(eye) * mat3(model) * normal; place = uv; tint = color; gl_Position = lens * seen;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 at; in vec3 turned; in vec2 place; in vec4 tint; out vec4 pixel;
uniform sampler2D picture; uniform vec4 factor; uniform bool smoothed, lit;
void main() {
  vec3 n = smoothed ? normalize(turned) : normalize(cross(dFdx(at), dFdy(at)));
  float shade = lit ? 0.35 + 0.65 * abs(dot(n, normalize(-at))) : 1.0;
  pixel = vec4(texture(picture, place).rgb * factor.rgb * tint.rgb * shade, 1.0);
}`;
const ATTRIBUTES = ["position", "normal", "uv", "color"];
const DEFAULTS = { normal: [0, 0, 1], uv: [0, 0], color: [1, 1, 1, 1] };

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser shows no WebGL 2");
    const program = this.program = gl.createProgram();
    [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]].forEach(([kind, text]) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    });
    ATTRIBUTES.forEach((name, place) => gl.bindAttribLocation(program, place, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    this.parts = [];
    this.held = []; // what the GPU holds, to be freed
    this.lit = this.turning = true;
    this.reset();
    this.listen();
  }

  reset() {
    Object.assign(this, { azimuth: 30, elevation: 15, zoom: 1, triangles: 0, frames: 0 });
  }

  // Show a GLB; returns when its picture is decoded.
  async show(buffer) {
    this.free();
    const gl = this.gl, parts = readGlb(buffer), low = [1e30, 1e30, 1e30], high = [-1e30, -1e30, -1e30];
    for (const part of parts) {
      const m = part.matrix, p = part.position.data;
      for (let i = 0; i < p.length; i += 3) for (let k = 0; k < 3; k++) {
        const value = m[k] * p[i] + m[4 + k] * p[i + 1] + m[8 + k] * p[i + 2] + m[12 + k];
        low[k] = Math.min(low[k], value);
        high[k] = Math.max(high[k], value);
      }
      part.array = gl.createVertexArray();
      gl.bindVertexArray(part.array);
      ATTRIBUTES.forEach((name, place) => {
        const found = part[name];
        if (!found) return gl["vertexAttrib" + DEFAULTS[name].length + "fv"](place, DEFAULTS[name]);
        const stored = gl.createBuffer();
        gl.bindBuffer(gl.ARRAY_BUFFER, stored);
        gl.bufferData(gl.ARRAY_BUFFER, Float32Array.from(found.data), gl.STATIC_DRAW);
        gl.enableVertexAttribArray(place);
        gl.vertexAttribPointer(place, found.width, gl.FLOAT, false, 0, 0);
        this.held.push(() => gl.deleteBuffer(stored));
      });
      if (part.index) {
        const stored = gl.createBuffer();
        gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, stored);
        gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, Uint32Array.from(part.index.data), gl.STATIC_DRAW);
        this.held.push(() => gl.deleteBuffer(stored));
      }
      const array = part.array;
      this.held.push(() => gl.deleteVertexArray(array));
      part.texture = await this.texture(part.picture);
      this.triangles += part.count / 3;
    }
    this.center = low.map((value, k) => (value + high[k]) / 2);
    this.size = Math.hypot(...low.map((value, k) => high[k] - value)) / 2 || 1;
    this.parts = parts;
    this.start();
  }

  // A texture of a picture, or a white one.
  async texture(picture) {
    const gl = this.gl, made = gl.createTexture();
    const source = picture && await createImageBitmap(picture, { colorSpaceConversion: "none" });
    gl.bindTexture(gl.TEXTURE_2D, made);
    if (source) {
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, source);
      gl.generateMipmap(gl.TEXTURE_2D);
    } else {
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array([255, 255, 255, 255]));
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    }
    this.held.push(() => gl.deleteTexture(made));
    return made;
  }

  start() {
    const tick = (now) => {
      if (!this.parts.length) return void (this.ticking = false);
      if (this.turning && this.last && !this.dragged) this.azimuth += (now - this.last) * 0.02; // 20 degrees a second
      this.last = now;
      this.draw();
      requestAnimationFrame(tick);
    };
    this.last = 0;
    if (!this.ticking) requestAnimationFrame(tick);
    this.ticking = true;
  }

  draw() {
    const gl = this.gl, canvas = this.canvas, scale = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0.93, 0.93, 0.93, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    const distance = this.size * 3.2 / this.zoom, of = (name) => gl.getUniformLocation(this.program, name);
    const eye = lookAt(this.center, this.azimuth, this.elevation, distance);
    gl.uniformMatrix4fv(of("eye"), false, eye);
    gl.uniformMatrix4fv(of("lens"), false, perspective(40, width / Math.max(height, 1), distance / 100, distance + 4 * this.size));
    gl.uniform1i(of("lit"), this.lit);
    for (const part of this.parts) {
      gl.uniformMatrix4fv(of("model"), false, part.matrix);
      gl.uniform4fv(of("factor"), part.factor);
      gl.uniform1i(of("smoothed"), part.normal !== null);
      gl.bindTexture(gl.TEXTURE_2D, part.texture);
      gl.bindVertexArray(part.array);
      if (part.index) gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 0);
      else gl.drawArrays(gl.TRIANGLES, 0, part.count);
    }
    this.frames++;
  }

  free() {
    this.parts = [];
    for (const free of this.held.splice(0)) free();
    this.reset();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.dragged = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.dragged) return;
      this.azimuth -= (event.clientX - this.dragged[0]) * 0.5;
      this.elevation = Math.max(-89, Math.min(89, this.elevation + (event.clientY - this.dragged[1]) * 0.5));
      this.dragged = [event.clientX, event.clientY];
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.dragged = null; });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom = Math.max(0.2, Math.min(20, this.zoom * Math.exp(-event.deltaY * 0.001)));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[event.key];
      if (!step) return;
      event.preventDefault();
      this.azimuth += step[0];
      this.elevation = Math.max(-89, Math.min(89, this.elevation + step[1]));
    });
  }
}
